"""What each event writes, as plain data: no MLflow, no I/O.

A search is a tree of runs: the search, one child a trial, and one child of a trial for every seed its
configuration was retrained with. `RunKey` says which, `Write` what is to be added to it. Names are the same
in all children, and few, so that the columns of the MLflow page need no set-up.
"""

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adept_tune.tracking.base import Event, SearchInfo

RUN_STATUS = {
    "FINISHED": "FINISHED",
    "PRUNED": "FINISHED",
    "DIVERGED": "FINISHED",
    "FAILED": "FAILED",
    "INTERRUPTED": "KILLED",
}
"""End state to MLflow status, of which there are too few to tell all ends apart; the tag `end_state` does."""

RUNNING = "RUNNING"
NOTE_TAG = "mlflow.note.content"
END_TAGS = {"end_state", "reason", "rung", "error"}
"""Tags that say how a run ended, and are no longer true when it goes on."""


@dataclass(frozen=True)
class RunKey:
    """Which run: the search (no trial), a trial (no seed), or a retrain of a trial."""

    trial: int | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Run name of a trial or retrain."""
        return f"trial-{self.trial:04d}" + ("" if self.seed is None else f"-seed-{self.seed}")


@dataclass(frozen=True)
class Write:
    """What one event adds to one run. Applying it twice leaves what applying it once leaves.

    Attributes:
        key: The run.
        time_ms: When it happened, Unix milliseconds.
        step: Optimizer step the metrics belong to; None for metrics of the whole run.
        metrics, params, tags: To be set.
        texts: File name to text, stored as artifacts.
        status: New MLflow status, None to leave it.
    """

    key: RunKey
    time_ms: int
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    status: str | None = None


def translate(event: Event, info: SearchInfo) -> Write | None:
    """What an event writes.

    Args:
        event: A line of the journal.
        info: The search it belongs to.

    Returns:
        The write; None for a kind of event that is not shown.

    Raises:
        KeyError: A field that this kind of event must have is missing.
        ValueError: A field has a value that it cannot have.
    """
    kind = KINDS.get(event["event"])
    return None if kind is None else kind(event, info)


def note(info: SearchInfo, first: str) -> str:
    """The description of the search run. The table of runs shows the first 50 characters, the run's page all."""
    return (
        f"{first}\n\n"
        f"Hyper-parameter search of {info.method} on {info.task}, ranked by validation {info.metric}.\n\n"
        "Children are trials, their children retrains with other seeds; the tag `end_state` says how each ended."
    )


def end_of(key: RunKey, state: str, time_ms: int) -> Write:
    """The write that ends a run.

    Raises:
        ValueError: An unknown state.
    """
    if state not in RUN_STATUS:
        raise ValueError(f"{key}: state {state!r} is none of {', '.join(RUN_STATUS)}")
    return Write(key, time_ms, tags={"end_state": state}, status=RUN_STATUS[state])


def end_of_search(info: SearchInfo, state: str, time_ms: int) -> Write:
    """The write that ends the search run; see `end_of`. What names the winner stays: only with one is it FINISHED."""
    end = end_of(RunKey(), state, time_ms)
    return end if state == "FINISHED" else replace(end, tags={**end.tags, NOTE_TAG: note(info, f"{state}.")})


def metric_name(text: str) -> str:
    """A name MLflow accepts ("recall@5" is not one)."""
    return re.sub(r"[^\w\-./ ]", "_", text)[:250]


def as_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as MLflow stores them."""
    return {metric_name(name): str(value)[:6000] for name, value in params.items()}


def as_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as MLflow stores them; what is None is left out."""
    return {metric_name(name): str(value)[:5000] for name, value in tags.items() if value is not None}


def now_ms() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)


def _key(event: Event) -> RunKey:
    retrain = event["event"].startswith("retrain_") or event["event"] == "tested"
    return RunKey(int(event["trial"]), int(event["seed"]) if retrain else None)


def _time_ms(event: Event) -> int:
    return int(float(event["time"]) * 1000) if "time" in event else now_ms()


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers as MLflow shows them: an infinity as NaN (MLflow would plot 1.8e308), None left out."""
    numbers = {metric_name(name): float(value) for name, value in values.items() if value is not None}
    return {name: value if math.isfinite(value) else math.nan for name, value in numbers.items()}


def _proposed(event: Event, info: SearchInfo) -> Write:
    params = dict(event["params"])
    if event.get("num_parameters") is not None:
        params["num_parameters"] = event["num_parameters"]
    return Write(_key(event), _time_ms(event), params=as_params(params))


def _started(event: Event, info: SearchInfo) -> Write:
    return Write(_key(event), _time_ms(event), status=RUNNING)


def _reported(event: Event, info: SearchInfo) -> Write:
    step = int(event["step"])
    values = {
        "step": step,
        "train_loss": event.get("train_loss"),
        "validation_loss": event.get("loss"),
        f"validation_{info.metric}": event.get("score"),
        "score": event.get("score"),
    }
    return Write(_key(event), _time_ms(event), step=step, metrics=_metrics(values))


def _decided(event: Event, info: SearchInfo) -> Write | None:
    if event["action"] != "stop":
        return None
    tags = as_tags({"reason": event.get("reason"), "rung": event.get("rung")})
    return Write(_key(event), _time_ms(event), tags=tags)


def _ended(event: Event, info: SearchInfo) -> Write:
    end = end_of(_key(event), event["state"], _time_ms(event))
    error = event.get("error")
    last_line = str(error).strip().rpartition("\n")[2].strip() if error else None
    return Write(
        end.key,
        end.time_ms,
        tags={**end.tags, **as_tags({"reason": event.get("reason"), "error": last_line})},
        texts={"error.txt": str(error)} if error else {},
        status=end.status,
    )


def _trouble(event: Event, info: SearchInfo) -> Write:
    """Something that a trial went on from: the latest as a tag, each whole story in a file of its own."""
    error, time_ms = event.get("error"), _time_ms(event)
    texts = {f"trouble-{time_ms}.txt": str(error)} if error else {}
    return Write(_key(event), time_ms, tags=as_tags({"trouble": event["what"]}), texts=texts)


def _retrain_started(event: Event, info: SearchInfo) -> Write:
    params = {**event.get("params", {}), "seed": int(event["seed"])}
    if event.get("num_parameters") is not None:
        params["num_parameters"] = event["num_parameters"]
    return Write(_key(event), _time_ms(event), params=as_params(params), status=RUNNING)


def _tested(event: Event, info: SearchInfo) -> Write:
    values = {f"test_{info.metric}": event["score"], "test_standard_error": event.get("standard_error")}
    values |= {f"test_{metric}": value for metric, (value, _) in event.get("also", {}).items()}
    return Write(_key(event), _time_ms(event), metrics=_metrics(values))


def _winner(event: Event, info: SearchInfo) -> Write:
    values = {
        f"{prefix}_{split}_{statistic}": (source.get(split) or {}).get(statistic)
        for prefix, source in (("winner", event), ("baseline", event.get("baseline") or {}))
        for split in ("validation", "test")
        for statistic in ("mean", "sd", "se")
    }
    tags = as_tags({f"winner_{name}": value for name, value in event.get("params", {}).items()})
    tags.update(as_tags({"winner_trial": event["trial"], "winner_seed": event.get("seed")}))
    tags[NOTE_TAG] = note(info, _winner_sentence(event, info))
    values["score"] = (event.get("validation") or {}).get("mean")  # the column in which the trials have theirs
    return Write(RunKey(), _time_ms(event), metrics=_metrics(values), tags=tags)


def _winner_sentence(event: Event, info: SearchInfo) -> str:
    """The winner in words, the trial and its score first."""
    parts = [
        f"{split} {info.metric} {event[split]['mean']:.3f} ± {event[split]['se']:.3f}"
        for split in ("test", "validation")
        if event.get(split)
    ]
    settings = ", ".join(f"{name} {value}" for name, value in event.get("params", {}).items())
    return f"Winner: trial {event['trial']}, {', '.join(parts)} (mean over seeds ± standard error); {settings}."


def _finished(event: Event, info: SearchInfo) -> Write:
    return end_of(RunKey(), event["state"], _time_ms(event))  # its note is the tracker's to write when it closes


KINDS: dict[str, Callable[[Event, SearchInfo], Write | None]] = {
    "proposed": _proposed,
    "started": _started,
    "reported": _reported,
    "decided": _decided,
    "ended": _ended,
    "trouble": _trouble,
    "retrain_started": _retrain_started,
    "retrain_reported": _reported,
    "retrain_ended": _ended,
    "retrain_trouble": _trouble,
    "tested": _tested,
    "winner": _winner,
    "finished": _finished,
}
"""Kinds of events that are shown; others pass by."""
