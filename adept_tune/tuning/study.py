"""The search itself, without Ray: proposals, reports, decisions, ends. The search *is* its journal.

Every change of state is one event: journalled and flushed, then applied, then told to whoever watches (tracker,
console). Applying the events of a journal to a fresh study rebuilds sampler, rungs and trials, which is how a search
is resumed, retrained and simulated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any

from adept_tune.engine.config import TrialConfig
from adept_tune.errors import StateError
from adept_tune.methods.base import NUM_REPORTS
from adept_tune.tasks.metrics import Score
from adept_tune.tuning.journal import Event, Journal, Listener
from adept_tune.tuning.rungs import Decision, Rule, standing
from adept_tune.tuning.samplers import Proposer
from adept_tune.tuning.space import Params
from adept_tune.tuning.store import Store
from adept_tune.tuning.work import End, Job, Report, Work, report_steps


@dataclass
class TrialRecord:
    """What is known of a trial.

    Attributes:
        number: Ours, from 0, in the order of proposal.
        params: Its point of the space, as people see it.
        config: Its settings.
        reports: By step.
        standings: By step, where it was evaluated; greater is better.
        decided: What the rule said, by step.
        state: How it ended; None while it runs.
        reason: Why it ended.
    """

    number: int
    params: Params
    config: TrialConfig
    reports: dict[int, Report] = field(default_factory=dict)
    standings: dict[int, float] = field(default_factory=dict)
    decided: dict[int, Decision] = field(default_factory=dict)
    state: End | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """As it is called in Tune, in the store and in MLflow."""
        return trial_name(self.number)

    @property
    def step(self) -> int:
        """Last reported step."""
        return max(self.reports, default=0)

    @property
    def rank(self) -> tuple[int, float]:
        """To compare trials by: how far it came, then its standing there."""
        step = max(self.standings, default=0)
        return step, self.standings.get(step, -inf)

    @property
    def last_evaluation(self) -> Report | None:
        """Its latest report with a score."""
        return self.reports[max(self.standings)] if self.standings else None


OUT_OF_TIME = "the time budget is used up"


def trial_name(number: int) -> str:
    """Name of a trial by its number."""
    return f"trial-{number:04d}"


class Study(Work):
    """The search phase.

    Args:
        proposer: Who proposes points.
        rule: Who goes on.
        configure: Point and trial number to the trial's settings, and the point as people see it.
        num_parameters: Trained numbers of a trial's settings.
        chance: Metric of the best constant answer on the validation half.
        maximize: Whether a greater metric is better.
        num_trials: Trials to propose in all.
        journal: Where events are kept.
        store: Where states are kept.
        listeners: Told of every event after it is journalled.
        out_of_time: Asked before a proposal and at each report; true winds the search up, once a trial was evaluated.
        num_reports: How often a trial reports on its way.
    """

    def __init__(
        self,
        proposer: Proposer,
        rule: Rule,
        configure: Callable[[Params, int], tuple[TrialConfig, Params]],
        num_parameters: Callable[[TrialConfig], int],
        chance: Score,
        maximize: bool,
        num_trials: int,
        journal: Journal,
        store: Store,
        listeners: Sequence[Listener] = (),
        out_of_time: Callable[[], bool] = lambda: False,
        num_reports: int = NUM_REPORTS,
    ) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.rule = rule
        self._proposer = proposer
        self._configure = configure
        self._num_parameters = num_parameters
        self._chance = chance
        self._maximize = maximize
        self._num_trials = num_trials
        self._journal = journal
        self._store = store
        self._listeners = tuple(listeners)
        self._out_of_time = out_of_time
        self._num_reports = num_reports
        self._open: list[int] = []

    # -- work ----------------------------------------------------------------------------------------------------

    def next(self) -> Job | None:
        """A trial of a replayed journal that was running, else a new one."""
        if self._winds_up():
            while self._open:
                self.end(trial_name(self._open.pop(0)), End.INTERRUPTED, OUT_OF_TIME)
            return None
        if self._open:
            return self._job(self._open.pop(0))
        number = len(self.trials)
        if number >= self._num_trials:
            return None
        params = self._proposer.propose(number)
        if params is None:
            return None
        self._add(number, params)
        record = self.trials[number]
        self._tell(
            {
                "event": "proposed",
                "trial": number,
                "point": params,
                "params": record.params,
                "num_parameters": self._num_parameters(record.config),
            }
        )
        return self._job(number)

    def started(self, name: str) -> None:
        """See `Work`."""
        if self.trials[_number(name)].state is None:  # Tune starts what has failed once more before it hears of it
            self._tell({"event": "started", "trial": _number(name)})

    def report(self, name: str, report: Report, fetch_state: Callable[[], bytes]) -> bool:
        """See `Work`."""
        number = _number(name)
        record = self.trials[number]
        if record.state is not None:
            return True
        if report.step in record.reports:
            return False
        if not report.diverged:
            self._store.write(name, report.step, fetch_state())
        self._tell({"event": "reported", "trial": number} | event_fields(report))
        self._take(record, report)
        self._follow(record, report)
        if record.state is None and report.step < record.config.max_steps and self._winds_up():
            self.end(name, End.INTERRUPTED, OUT_OF_TIME)
        return record.state not in (None, End.FINISHED)

    def save(self, name: str, step: int, blob: bytes) -> None:
        """See `Work`."""
        self._store.write(name, step, blob)
        self._tell({"event": "saved", "trial": _number(name), "step": step})

    def trouble(self, name: str, what: str, error: str | None = None) -> None:
        """See `Work`."""
        self._tell({"event": "trouble", "trial": _number(name), "what": what} | ({"error": error} if error else {}))

    def end(self, name: str, end: End, reason: str, error: str | None = None) -> None:
        """See `Work`."""
        number = _number(name)
        record = self.trials[number]
        if record.state is not None:
            return
        event = {"event": "ended", "trial": number, "state": str(end), "step": record.step, "reason": reason}
        self._tell(event | ({"error": error} if error else {}))
        self._finish(record, end, reason)

    # -- replay --------------------------------------------------------------------------------------------------

    def replay(self, events: Iterable[Event]) -> None:
        """Rebuild the search from its events; nothing of them is journalled or told again.

        A kill may have come between a report and what follows from it; that is caught up with here, and journalled.

        Raises:
            StateError: An event refers to a trial that was never proposed, or lacks a field.
        """
        for event in events:
            try:
                self._apply(event)
            except (KeyError, TypeError, ValueError) as error:
                raise StateError(f"{self._journal.path}: cannot replay {event}: {error!r}") from error
        for record in self.trials.values():
            if record.state is None and record.step:
                self._follow(record, record.reports[record.step])
        self._open = [number for number, record in self.trials.items() if record.state is None]

    def _apply(self, event: Event) -> None:
        kind = event["event"]
        if kind == "proposed":
            self._proposer.again(event["trial"], event["point"])
            self._add(event["trial"], event["point"])
        elif kind == "reported":
            record = self.trials[event["trial"]]
            self._take(record, report_of(event))
        elif kind == "decided":
            record = self.trials[event["trial"]]
            record.decided[event["step"]] = self._decide(record, event["step"])
        elif kind == "ended" and event["state"] != End.INTERRUPTED:
            self._finish(self.trials[event["trial"]], End(event["state"]), event["reason"])

    # -- what is known -------------------------------------------------------------------------------------------

    def best(self, count: int) -> list[TrialRecord]:
        """Trials that came furthest with the best standing, best first; diverged and failed ones are left out."""
        ended_badly = (End.DIVERGED, End.FAILED)
        ranked = [r for r in self.trials.values() if r.rank[1] > -inf and r.state not in ended_badly]
        return sorted(ranked, key=lambda record: (record.rank, -record.number), reverse=True)[:count]

    def counts(self) -> dict[End, int]:
        """Trials by how they ended."""
        return {end: sum(record.state is end for record in self.trials.values()) for end in End}

    # -- inside --------------------------------------------------------------------------------------------------

    def _winds_up(self) -> bool:
        """Whether time is up and there is something to show for it; a search without one evaluation is all lost."""
        return self._out_of_time() and bool(self.best(1))

    def _add(self, number: int, params: Params) -> None:
        config, shown = self._configure(params, number)
        self.trials[number] = TrialRecord(number, shown, config)

    def _job(self, number: int) -> Job:
        record = self.trials[number]
        last = record.config.max_steps
        evaluations = [*self.rule.steps(number), last]
        return Job(
            record.name, record.config, report_steps(last, evaluations, self._num_reports), frozenset(evaluations)
        )

    def _take(self, record: TrialRecord, report: Report) -> None:
        record.reports[report.step] = report
        if report.diverged:
            self._proposer.reported(record.number, report.step, nan)
        elif report.score is not None and report.loss is not None:
            value = standing(report.score, report.loss, self._chance.value, self._chance.standard_error, self._maximize)
            record.standings[report.step] = value
            self._proposer.reported(record.number, report.step, value)

    def _follow(self, record: TrialRecord, report: Report) -> None:
        """Draw the consequences of a report: divergence, the rule's decision, the end."""
        if report.diverged:
            self.end(record.name, End.DIVERGED, "a loss or gradient was not finite")
            return
        last = report.step >= record.config.max_steps
        if report.step in record.standings and not last:
            decision = record.decided.get(report.step)
            if decision is None:
                decision = record.decided[report.step] = self._decide(record, report.step)
                self._tell(_decided(record.number, report.step, decision))
            if decision.stop:
                self.end(record.name, End.PRUNED, decision.reason)
        elif last:
            self.end(record.name, End.FINISHED, "ran to its end")

    def _decide(self, record: TrialRecord, step: int) -> Decision:
        decision = self.rule.decide(record.number, step, record.standings[step])
        report = record.reports[step]
        sign = 1.0 if self._maximize else -1.0
        if report.score is None or record.standings[step] == sign * report.score:
            return decision
        return replace(decision, reason=f"{decision.reason}; not clear of chance, so ranked by loss {report.loss:.4f}")

    def _finish(self, record: TrialRecord, end: End, reason: str) -> None:
        record.state, record.reason = end, reason
        if end is End.FINISHED:
            self._proposer.ended(record.number, record.rank[1], pruned=False)
        elif end in (End.PRUNED, End.DIVERGED):
            self._proposer.ended(record.number, None, pruned=True)
        elif end is End.FAILED:
            self._proposer.ended(record.number, None, pruned=False)

    def _tell(self, event: Event) -> None:
        self._journal.tell(event, self._listeners)


def _number(name: str) -> int:
    return int(name.split("-")[1])


def _decided(number: int, step: int, decision: Decision) -> Event:
    return {
        "event": "decided",
        "trial": number,
        "step": step,
        "rung": decision.rung,
        "action": "stop" if decision.stop else "continue",
        "reason": decision.reason,
    }


def event_fields(report: Report) -> dict[str, Any]:
    """The fields that say something."""
    fields: dict[str, Any] = {"step": report.step, "train_loss": report.train_loss, "seconds": round(report.seconds, 3)}
    if report.score is not None:
        fields |= {"score": report.score, "standard_error": report.standard_error, "loss": report.loss}
    return fields | ({"diverged": True} if report.diverged else {})


def report_of(event: Event) -> Report:
    return Report(
        step=event["step"],
        train_loss=event["train_loss"],
        score=event.get("score"),
        standard_error=event.get("standard_error"),
        loss=event.get("loss"),
        diverged=event.get("diverged", False),
        seconds=event.get("seconds", 0.0),
    )
