"""What every tracker promises, and what it is told about a search."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
"""One line of the journal: `event` names the kind, `time` is in Unix seconds, `trial` is our own number."""


def without_credentials(text: str) -> str:
    """A text with user names and passwords taken out of the URIs in it: what others may read."""
    return re.sub(r"(?<=://)[^/\s\"]*@", "", text)


@dataclass(frozen=True)
class SearchInfo:
    """What is known of a search before its first trial.

    Attributes:
        search_id: Finds the search's runs again; a resumed search has the id of the interrupted one.
        name: Name of the search run.
        task: Task name.
        method: Method name, such as "adept".
        metric: Name of the task's metric; `score` is its value on the validation rows.
        params: Settings of the whole search (model, trials, max_steps, ...), shown on the search run.
        tags: Further tags of the search run.
        artifacts: File name to text, stored with the search run.
        columns: Names of the searched settings, in the order in which people see them.
        demonstration: The search shows the machinery on a toy; said in the run's name and in a tag.
    """

    search_id: str
    name: str
    task: str
    method: str
    metric: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] = ()
    demonstration: bool = False

    def __post_init__(self) -> None:
        """Refuse an id that could not be looked up again."""
        if not self.search_id or not set(self.search_id).isdisjoint("'\"\\%"):
            raise ValueError(
                f"SearchInfo: search_id={self.search_id!r}: give letters, digits, '-' and '_'; runs are looked up by it"
            )


class Tracker(ABC):
    """Shows a search to people. Never stops it: only `close` says what could not be shown."""

    def prepare(self) -> None:  # noqa: B027  # most have nothing to do
        """Get ready for `start`, where that takes time; it may never come. Returns at once."""

    @abstractmethod
    def start(self, info: SearchInfo) -> None:
        """Begin a search, or take up again the one that has the same id. Returns at once."""

    @abstractmethod
    def record(self, event: Event) -> None:
        """Take one event of the search. Returns at once and never raises; recording it again is harmless."""

    @abstractmethod
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder's files, with the search.

        Args:
            path: A file or folder that stays unchanged until `close`.
            folder: Where in the search's artifacts to put it; the top when None.
        """

    @abstractmethod
    def log_adapter(self, folder: Path, input_columns: Sequence[str] = ()) -> None:
        """Store an exported adapter with the search, as a model that can be served.

        Args:
            folder: An exported adapter that stays unchanged until `close`.
            input_columns: The task's columns; when empty the model takes ready text in one column, `text`.
        """

    @abstractmethod
    def close(self, state: str) -> list[str]:
        """End the search and everything in it that is still open.

        Args:
            state: How the search ended: FINISHED, FAILED or INTERRUPTED.

        Returns:
            What could not be shown and why, a line each; empty when all is written.
        """


class NullTracker(Tracker):
    """Shows nothing."""

    def start(self, info: SearchInfo) -> None:
        """See `Tracker`."""

    def record(self, event: Event) -> None:
        """See `Tracker`."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """See `Tracker`."""

    def log_adapter(self, folder: Path, input_columns: Sequence[str] = ()) -> None:
        """See `Tracker`."""

    def close(self, state: str) -> list[str]:
        """See `Tracker`."""
        return []
