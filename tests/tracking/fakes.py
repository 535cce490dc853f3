"""Runs in a dict, a switch to unplug it, and a small search to show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adept_tune.tracking.base import SearchInfo
from adept_tune.tracking.runs import StoredRun
from adept_tune.tracking.translate import END_TAGS, Write

INFO = SearchInfo(
    "search-1",
    "cola with adept",
    "cola",
    "adept",
    "matthews",
    params={"model": "t5-small", "trials": 5, "max_steps": 80},
    tags={"seed": "7"},
    artifacts={"space.yaml": "budget: 76800\n"},
    columns=("prompt_length", "ffn_width", "prompt_lr", "ffn_lr"),
)
TRACEBACK = "Traceback (most recent call last):\n  File 'x'\nRuntimeError: out of memory\n"


@dataclass
class FakeRun:
    """A run, and every metric value it was given."""

    name: str
    tags: dict[str, str]
    start_ms: int
    status: str = "RUNNING"
    end_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, int, int], float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


class FakeStore:
    """A `RunStore` in memory that behaves as MLflow does where it matters."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.experiment_id = "7"
        self.experiment_tags: dict[str, str] = {}
        self.alive = True
        self.calls: list[str] = []
        self.answer_lost = False

    def by_name(self, name: str) -> FakeRun:
        """The only run of that name."""
        (found,) = [run for run in self.runs.values() if run.name == name]
        return found

    def tag_experiment(self, name: str, value: str) -> None:
        self._call(f"tag {name}")
        self.experiment_tags[name] = value

    def find(self, search_id: str) -> Sequence[StoredRun]:
        self._call("find")
        return [
            StoredRun(
                run_id,
                run.status,
                dict(run.tags),
                dict(run.params),
                max((s for _, s, _ in run.metrics), default=-1),
            )
            for run_id, run in self.runs.items()
            if run.tags["search_id"] == search_id
        ]

    def create(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        self._call(f"create {name}")
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = FakeRun(name, dict(tags), start_ms)
        if self.answer_lost:
            self.answer_lost = False
            raise ConnectionError("answer lost")
        return run_id

    def log(self, run_id: str, write: Write) -> None:
        run = self.runs[run_id]
        self._call(f"log {run.name} {'' if write.step is None else write.step}".strip())
        for name, value in write.params.items():
            assert run.params.setdefault(name, value) == value, "MLflow refuses to change a param"
        run.tags.update(write.tags)
        for name, metric in write.metrics.items():
            run.metrics[name, write.step or 0, write.time_ms] = metric

    def log_text(self, run_id: str, file_name: str, text: str) -> None:
        self._call(f"text {file_name}")
        self.runs[run_id].artifacts[file_name] = text

    def log_path(self, run_id: str, path: Path, folder: str | None) -> None:
        self._call(f"path {path}")
        self.runs[run_id].artifacts[f"{folder}/{path.name}"] = path.read_text()

    def log_adapter(self, run_id: str, path: Path, input_columns: Sequence[str]) -> None:
        self._call(f"adapter {path} {list(input_columns)}")

    def reopen(self, run_id: str) -> None:
        self._call(f"reopen {self.runs[run_id].name}")
        self.runs[run_id].status = "RUNNING"
        for tag in END_TAGS:
            self.runs[run_id].tags.pop(tag, None)

    def end(self, run_id: str, status: str, end_ms: int) -> None:
        self._call(f"end {self.runs[run_id].name}")
        self.runs[run_id].status = status
        self.runs[run_id].end_ms = end_ms

    def answers(self) -> bool:
        return self.alive

    def _call(self, what: str) -> None:
        if not self.alive:
            raise ConnectionError("connection refused")
        self.calls.append(what)


def proposed(trial: int, time: float = 100.0) -> dict[str, Any]:
    """A proposal."""
    params = {"prompt_length": 60 + trial, "ffn_width": 19, "prompt_lr": 0.3, "ffn_lr": 1e-4}
    return {"event": "proposed", "time": time, "trial": trial, "params": params, "num_parameters": 76051}


def trial_events(trial: int, state: str) -> list[dict[str, Any]]:
    """A trial from proposal to its end at step 80."""
    at = {"trial": trial, "time": 100.0 + trial}
    reason = f"ended as {state}"
    events = [
        proposed(trial, at["time"]),
        {"event": "started", **at, "incarnation": 0},
        {"event": "reported", **at, "step": 40, "train_loss": 0.5, "seconds": 1.0},
        {"event": "reported", **at, "step": 80, "train_loss": 0.3, "score": 0.5, "loss": 0.4, "seconds": 2.0},
        {"event": "decided", **at, "step": 80, "rung": 0, "action": "continue", "reason": "above"},
    ]
    if state == "PRUNED":
        events.append({"event": "decided", **at, "step": 80, "rung": 0, "action": "stop", "reason": "below"})
    error = TRACEBACK if state == "FAILED" else None
    events.append({"event": "ended", **at, "state": state, "step": 80, "reason": reason, "error": error})
    return events


STATES = ("FINISHED", "PRUNED", "DIVERGED", "FAILED", "INTERRUPTED")


def search_events() -> list[dict[str, Any]]:
    """A search of five trials, one for each way to end, whose first is retrained with two seeds and wins."""
    events = [event for trial, state in enumerate(STATES) for event in trial_events(trial, state)]
    for seed in (1, 2):
        at = {"trial": 0, "seed": seed, "time": 200.0 + seed}
        events += [
            {"event": "retrain_started", **at},
            {"event": "retrain_reported", **at, "step": 80, "train_loss": 0.2, "score": 0.6, "loss": 0.3},
            {"event": "retrain_ended", **at, "state": "FINISHED", "step": 80},
            {"event": "tested", **at, "score": 0.55, "standard_error": 0.02},
        ]
    summary = {"mean": 0.6, "sd": 0.01, "se": 0.007}
    events.append(
        {
            "event": "winner",
            "time": 300.0,
            "trial": 0,
            "seed": 2,
            "params": {"prompt_length": 60},
            "validation": summary,
            "test": {**summary, "mean": 0.55},
            "baseline": {"validation": {**summary, "mean": 0.4}, "test": None},
        }
    )
    return [*events, {"event": "finished", "time": 301.0, "state": "FINISHED"}]
