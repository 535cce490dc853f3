"""What a person sees while a search runs: one live view on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from adept_tune.tuning.record import Record, TrialStory

QUIET_S = 15.0  # longest silence while trials report
REFRESH_PER_S = 4


@dataclass(frozen=True)
class Outlook:
    """What the view shows besides events.

    Attributes:
        metric: Name of the score.
        maximize: Whether a greater score is better.
        slots: Trials that can run at once.
        rungs: Steps at which trials are compared.
        expected_s: Wall time the plan expects; None where there is none.
        look: Tells the address of the MLflow page, and the command that serves it; the address may change early on.
        demonstration: Whether the results are a demonstration only.
    """

    metric: str
    maximize: bool
    slots: int
    rungs: Sequence[int]
    expected_s: float | None
    look: Callable[[], str]
    demonstration: bool = False


class Console:
    """Events in, a view or lines out.

    Args:
        stream: Where to write; None is standard output.
        clock: Seconds, for times.
        live: Whether to draw the live view; None decides by whether the stream is a terminal.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, live: bool | None = None
    ) -> None:
        self._stream = stream or sys.stdout
        self._clock = clock
        self._draws = self._stream.isatty() if live is None else live
        self._begun = clock()
        self._last_line = self._begun
        self._running: dict[str, str] = {}
        self._live: Live | None = None
        self._record: Record | None = None
        self._outlook: Outlook | None = None

    def say(self, text: str = "") -> None:
        """A line, or several."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)
        self._last_line = self._clock()

    def table(self, heads: list[str], rows: list[list[str]]) -> None:
        """Aligned columns."""
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        for row in [heads, *rows]:
            self.say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def begin(self, record: "Record", outlook: Outlook) -> None:
        """Start to follow a search.

        Args:
            record: What is known of it; kept up to date with every event.
            outlook: What else there is to show.
        """
        self._record, self._outlook = record, outlook
        if self._draws:
            from rich.console import Console as RichConsole
            from rich.live import Live

            self._live = Live(
                get_renderable=self._view,
                console=RichConsole(file=self._stream),
                refresh_per_second=REFRESH_PER_S,
                transient=True,
            )
            self._live.start()

    def end(self) -> None:
        """Stop following; lines from now on are plain."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        """Say what a person wants to know of an event, and something at least every `QUIET_S` seconds."""
        if self._record is not None:
            self._record.take(dict(event))
        line = self._line(event)
        if line and not (self._live is not None and event["event"] in ("proposed", "reported")):
            self._timed(line)
        elif self._live is None and self._running and self._clock() - self._last_line > QUIET_S:
            self._timed("training: " + ", ".join(f"{name} {what}" for name, what in self._running.items()))

    def _timed(self, line: str) -> None:
        self.say(f"[{_clock_face(self._clock() - self._begun)}] {line}")

    def _line(self, event: Mapping[str, Any]) -> str | None:
        kind = event["event"].removeprefix("retrain_")
        name = f"trial {event.get('trial', '')}" + (f" seed {event['seed']}" if "seed" in event else "")
        metric = self._outlook.metric if self._outlook else "score"
        if kind == "proposed":
            return f"{name}: {shown(event['params'])} ({event['num_parameters']:,} parameters)"
        if kind == "reported":
            self._running[name] = f"step {event['step']} loss {event['train_loss']:.3f}"
            if "score" in event:
                return f"{name}: step {event['step']}, {metric} {event['score']:.4f}, loss {event['loss']:.4f}"
        if kind == "ended":
            self._running.pop(name, None)
            return f"{name}: {event['state']} at step {event['step']} ({event['reason']})"
        if kind == "trouble":
            return f"{name}: {event['what']}"
        if kind == "tested":
            return f"{name}: test {metric} {event['score']:.4f}"
        return None

    # -- the live view -------------------------------------------------------------------------------------------

    def _view(self) -> "RenderableType":
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        record, outlook = self._record, self._outlook
        assert record is not None
        assert outlook is not None
        stories = [*list(record.trials.values()), *list(record.reruns.values())]
        running = [story for story in stories if story.state == "RUNNING" and story.started]
        head = Table.grid(padding=(0, 2))
        for label, text in self._facts(record, outlook, len(running)):
            head.add_row(Text(label, style="bold"), Text(text))
        table = Table("running", "step", "train loss", outlook.metric, "configuration", box=None, pad_edge=False)
        for story in running:
            score = "" if story.score is None else f"{story.score:.4f}"
            loss = f"{story.losses[story.step]:.3f}" if story.losses else ""
            name = f"trial {story.number}" + (f" seed {story.seed}" if story.seed is not None else "")
            steps = f"{story.step}/{record.spec.max_steps}"
            table.add_row(name, steps, loss, score, Text(shown(story.params), overflow="ellipsis", no_wrap=True))
        title = f"{record.spec.task_name} with {record.spec.method}" + (
            ", a demonstration" if outlook.demonstration else ""
        )
        return Panel(Group(head, Text(), table), title=title, border_style="dim")

    def _facts(self, record: "Record", outlook: Outlook, num_running: int) -> list[tuple[str, str]]:
        trials = list(record.trials.values())  # the view is drawn in a thread of its own
        states = [story.state for story in trials]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states) if s != "RUNNING") or "none ended"
        elapsed = self._clock() - self._begun
        left = (
            "" if outlook.expected_s is None else f", about {_clock_face(max(0.0, outlook.expected_s - elapsed))} left"
        )
        rungs = ", ".join(f"{sum(step in story.scores for story in trials)} at {step}" for step in outlook.rungs)
        facts = [
            ("best so far", self._best(trials, outlook)),
            ("trials", f"{len(record.trials)} of {record.spec.trials} proposed; {counts}"),
            ("rungs", rungs or "none"),
            ("slots", f"{num_running} of {outlook.slots} in use"),
            ("time", f"{_clock_face(elapsed)}{left}"),
            ("look", outlook.look()),
        ]
        if record.reruns:
            done = sum(story.state == "FINISHED" for story in list(record.reruns.values()))
            facts.insert(2, ("retraining", f"{done} of {record.num_reruns} runs done"))
        return facts

    def _best(self, trials: "Sequence[TrialStory]", outlook: Outlook) -> str:
        scored = [story for story in trials if story.score is not None]
        if not scored:
            return "no trial has been evaluated yet"
        sign = 1 if outlook.maximize else -1

        def rank(story: "TrialStory") -> float:
            return sign * (story.score or 0.0)

        best = max(scored, key=rank)
        return (
            f"trial {best.number}, {outlook.metric} {best.score:.4f} at step {max(best.scores)}: {shown(best.params)}"
        )


def shown(params: Mapping[str, Any]) -> str:
    """A configuration on one line."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in params.items()
    )


def _clock_face(seconds: float) -> str:
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"
