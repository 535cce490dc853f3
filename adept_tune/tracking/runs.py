"""The runs of one search: made once, found again, written to, ended.

`RunStore` is the little that is asked of MLflow; `mlflow_store` does it with MLflow, the tests with a dict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adept_tune.tracking.base import SearchInfo
from adept_tune.tracking.environment import git_commit, versions
from adept_tune.tracking.translate import (
    NOTE_TAG,
    RUNNING,
    RunKey,
    Write,
    as_params,
    as_tags,
    end_of,
    end_of_search,
    note,
    now_ms,
)
from adept_tune.tracking.view import page_of, view_tag

PARENT_TAG = "mlflow.parentRunId"


@dataclass
class StoredRun:
    """A run as the store has it.

    Attributes:
        run_id: The store's id.
        status: MLflow status.
        tags, params: As stored.
        step: Last step that has metrics, -1 for none.
    """

    run_id: str
    status: str = RUNNING
    tags: Mapping[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    step: int = -1


class RunStore(Protocol):
    """Where runs are kept. Every call may raise, and is then made again."""

    @property
    def experiment_id(self) -> str:
        """The store's id of what holds the runs."""

    def tag_experiment(self, name: str, value: str) -> None:
        """Set a tag of what holds the runs."""

    def find(self, search_id: str) -> Sequence[StoredRun]:
        """All runs that have this tag `search_id`, oldest first."""

    def create(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """Make a run; returns its id."""

    def log(self, run_id: str, write: Write) -> None:
        """Store metrics, params and tags in one call."""

    def log_text(self, run_id: str, file_name: str, text: str) -> None:
        """Store a text as an artifact."""

    def log_path(self, run_id: str, path: Path, folder: str | None) -> None:
        """Store a file or folder as artifacts."""

    def log_adapter(self, run_id: str, path: Path, input_columns: Sequence[str]) -> None:
        """Store an adapter as a model made by the run."""

    def reopen(self, run_id: str) -> None:
        """Set an ended run to RUNNING and take its `END_TAGS` away."""

    def end(self, run_id: str, status: str, end_ms: int) -> None:
        """End a run."""

    def answers(self) -> bool:
        """Whether the store can be reached."""


class SearchRuns:
    """The run tree of one search.

    A run is looked up by its tags before it is made, so neither a resumed search nor a create whose answer
    was lost makes a second one.
    """

    def __init__(self, store: RunStore, info: SearchInfo) -> None:
        """Remember where to write; nothing is read or written before `open`."""
        self.store = store
        self._info = info
        self._runs: dict[RunKey, StoredRun] = {}
        self._create_unanswered = False

    @property
    def parent_id(self) -> str:
        """Id of the search run."""
        return self._runs[RunKey()].run_id

    @property
    def page(self) -> str:
        """Address of the page that shows the trials, relative to the server's."""
        return page_of(self.store.experiment_id, self._info)

    def open(self) -> None:
        """Find the runs of this search, and make or reopen its own.

        MLflow does not let a param change: what a resumed search has changed becomes a tag NAME_on_resume.
        """
        self._find()
        info = self._info
        self.store.tag_experiment(*view_tag(info))
        params = as_params({"task": info.task, "method": info.method, "metric": info.metric, **info.params})
        stored = self._runs[RunKey()].params if RunKey() in self._runs else {}
        changed = {f"{name}_on_resume": new for name, new in params.items() if stored.get(name, new) != new}
        about = note(info, "Running; if nothing runs any more, resume it.")
        own = self._tags_of(RunKey(), now_ms())  # last: by these the run is found again
        tags = as_tags({**_origin(), **info.tags, **changed, NOTE_TAG: about, **own})
        write = Write(RunKey(), now_ms(), params=params, tags=tags, texts=info.artifacts, status=RUNNING)
        self.apply(write)

    def apply(self, write: Write) -> None:
        """Write to a run, which is made first if need be. Repeating it changes nothing."""
        run = self._runs.get(write.key) or self._create(write.key, write.time_ms)
        if write.status == RUNNING:
            self._reopen(write.key)
            self._reopen(RunKey())  # a journal played again tells of an end before it tells of the resumption
        params = {
            name: value
            for name, value in {**self._inherited(write.key), **write.params}.items()
            if name not in run.params
        }
        already = write.step is not None and write.step < run.step
        metrics = {} if already else write.metrics
        if params or metrics or write.tags:
            new = Write(write.key, write.time_ms, write.step, metrics=metrics, params=params, tags=write.tags)
            self.store.log(run.run_id, new)
            run.params |= params
        for file_name, text in write.texts.items():
            self.store.log_text(run.run_id, file_name, text)
        if write.status not in (None, RUNNING):
            self.store.end(run.run_id, write.status, write.time_ms)
            run.status = write.status

    def end_all(self, state: str) -> None:
        """End the search in the given state, and as INTERRUPTED what it left unfinished."""
        for key, run in self._runs.items():
            if run.status == RUNNING and key != RunKey():
                self.apply(end_of(key, "INTERRUPTED", now_ms()))
        self.apply(end_of_search(self._info, state, now_ms()))

    def _reopen(self, key: RunKey) -> None:
        """Let an ended run go on."""
        run = self._runs[key]
        if run.status != RUNNING:
            self.store.reopen(run.run_id)
            run.status = RUNNING

    def _find(self) -> None:
        """Add the stored runs to the table."""
        for run in self.store.find(self._info.search_id):
            kind = run.tags.get("kind")
            trial = None if kind == "search" else int(run.tags["trial"])
            seed = int(run.tags["seed"]) if kind == "retrain" else None
            self._runs.setdefault(RunKey(trial, seed), run)

    def _create(self, key: RunKey, time_ms: int) -> StoredRun:
        """Make a run, unless an earlier attempt did although its answer never came."""
        if self._create_unanswered:
            self._find()
            self._create_unanswered = False
            if key in self._runs:
                return self._runs[key]
        tags = self._tags_of(key, time_ms)
        self._create_unanswered = True
        run_id = self.store.create(self._name_of(key), tags, time_ms)
        self._create_unanswered = False
        self._runs[key] = StoredRun(run_id, tags=tags)
        return self._runs[key]

    def _name_of(self, key: RunKey) -> str:
        if key != RunKey():
            return key.name
        return f"demonstration: {self._info.name}" if self._info.demonstration else self._info.name

    def _tags_of(self, key: RunKey, time_ms: int) -> dict[str, str]:
        """The tags by which a run is found and filtered."""
        info = self._info
        kind = "search" if key.trial is None else "trial" if key.seed is None else "retrain"
        tags = {"search_id": info.search_id, "task": info.task, "method": info.method, "kind": kind}
        tags["mlflow.source.name"] = "adept_tune"
        if info.demonstration:
            tags["demonstration"] = "true"
        if key.trial is not None:
            above = RunKey() if key.seed is None else RunKey(key.trial)
            tags["trial"] = str(key.trial)
            tags[PARENT_TAG] = (self._runs.get(above) or self._create(above, time_ms)).run_id
        if key.seed is not None:
            tags["seed"] = str(key.seed)
        return tags

    def _inherited(self, key: RunKey) -> Mapping[str, str]:
        """A retrain shows the params of its trial."""
        above = None if key.seed is None else self._runs.get(RunKey(key.trial))
        return {} if above is None else above.params


def _origin() -> dict[str, str | None]:
    """What the search runs on."""
    commit = git_commit(Path(__file__).resolve().parents[1])
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return {"versions": found, "git_commit": commit, "mlflow.source.git.commit": commit}
