"""What a journal says of a search, for people: trials, finalists, winner, times. Needs neither model nor rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adept_tune.errors import StateError
from adept_tune.tuning.journal import Event, Journal
from adept_tune.tuning.retrain import Spread
from adept_tune.tuning.spec import JOURNAL, SearchSpec


@dataclass
class TrialStory:
    """A trial or a retraining as its events tell it.

    Attributes:
        number: Of the trial.
        seed: Of the retraining; None for a trial of the search.
        params: Its configuration.
        num_parameters: Trained numbers.
        losses: Step to training loss.
        scores: Step to validation score.
        errors: Step to the score's standard error.
        validation_losses: Step to validation loss.
        state: How it ended; RUNNING while it has not.
        reason: Why.
        started: Whether a process has taken it up.
        test: Test score and standard error, where it was tested.
    """

    number: int
    seed: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    num_parameters: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    validation_losses: dict[int, float] = field(default_factory=dict)
    state: str = "RUNNING"
    reason: str = ""
    started: bool = False
    test: tuple[float, float] | None = None

    @property
    def step(self) -> int:
        """Last reported step."""
        return max(self.losses, default=0)

    @property
    def score(self) -> float | None:
        """Latest validation score."""
        return self.scores[max(self.scores)] if self.scores else None


@dataclass
class Record:
    """A whole search as its journal tells it.

    Attributes:
        spec: What was asked for.
        trials: By number.
        reruns: By trial number and seed, of the last retraining.
        num_reruns: How many there will be of that retraining.
        winner: The winner's event, once it has one.
        parts_s: Seconds of each part: search, retraining, test.
    """

    spec: SearchSpec
    trials: dict[int, TrialStory] = field(default_factory=dict)
    reruns: dict[tuple[int, int], TrialStory] = field(default_factory=dict)
    num_reruns: int = 0
    winner: Event | None = None
    parts_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read an experiment folder.

        Raises:
            SpecError: There is no experiment in it.
            StateError: Its journal is damaged.
        """
        record = cls(SearchSpec.read(folder))
        events = list(Journal(folder / JOURNAL).read())
        for event in events:
            try:
                record.take(event)
            except KeyError as error:
                raise StateError(f"{folder / JOURNAL}: {error} is missing: {event}") from error
            except StateError as error:
                raise StateError(f"{folder}: {error}") from error
        record.parts_s = parts_s(events)
        return record

    def take(self, event: Event) -> None:
        """Take one event into account."""
        kind = event["event"]
        if kind == "proposed":
            number = event["trial"]
            story = TrialStory(number, None, event["params"], event["num_parameters"])
            self.trials[number] = story
        elif kind == "retraining":
            self.reruns.clear()
            self.winner = None
            self.num_reruns = len(event["finalists"]) * event["seeds"]
        elif kind == "winner":
            self.winner = event
        elif "trial" in event:
            self._detail(self._story(event), kind.removeprefix("retrain_"), event)

    def finalists(self) -> dict[int, Spread]:
        """Validation of each finalist over its finished seeds, in the order in which they were retrained."""
        spreads = {}
        for number in dict.fromkeys(number for number, _ in self.reruns):
            mine = [s for (n, _), s in self.reruns.items() if n == number and s.state == "FINISHED" and s.scores]
            if mine:
                last = [max(story.scores) for story in mine]
                scores = [story.scores[step] for story, step in zip(mine, last, strict=True)]
                spreads[number] = Spread.of(scores, [s.errors[step] for s, step in zip(mine, last, strict=True)])
        return spreads

    def _story(self, event: Event) -> TrialStory:
        number, seed = event["trial"], event.get("seed")
        if number not in self.trials:
            raise StateError(f"{JOURNAL}: trial {number} was never proposed: {event}")
        if seed is None:
            return self.trials[number]
        parent = self.trials[number]
        fresh = TrialStory(number, seed, parent.params, parent.num_parameters)
        return self.reruns.setdefault((number, seed), fresh)

    @staticmethod
    def _detail(story: TrialStory, kind: str, event: Event) -> None:
        if kind == "reported":
            story.losses[event["step"]] = event["train_loss"]
            if "score" in event:
                story.scores[event["step"]] = event["score"]
                story.errors[event["step"]] = event["standard_error"]
                story.validation_losses[event["step"]] = event["loss"]
        elif kind == "ended":
            story.state, story.reason = event["state"], event["reason"]
        elif kind == "started":
            story.started = True
            if story.state == "INTERRUPTED":
                story.state, story.reason = "RUNNING", ""
        elif kind == "tested":
            story.test = event["score"], event["standard_error"]


def parts_s(events: Iterable[Event]) -> dict[str, float]:
    """Wall time by the part of the search that an event belongs to; the time between sessions is left out."""
    parts = {"search": 0.0, "retraining": 0.0, "test": 0.0}
    before: float | None = None
    for event in events:
        kind = event["event"]
        part = "test" if kind in ("tested", "winner") else "retraining" if kind.startswith("retrain") else "search"
        if before is not None and kind != "resumed":
            parts[part] += event["time"] - before
        before = None if kind == "finished" else event["time"]
    return parts
