"""The search's own record: one JSON object a line, flushed before anyone acts on it."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adept_tune.errors import StateError, StorageError

Event = dict[str, Any]
Listener = Callable[[Event], None]

_TRIAL = {"trial": int}
_SEED = _TRIAL | {"seed": int}
_REPORTED = {"step": int, "train_loss": float}
_ENDED = {"state": str, "step": int, "reason": str}

# Kind of event -> what each of its kind must have; every event has a time. Other kinds pass unread.
EVENTS: Mapping[str, Mapping[str, type]] = {
    "proposed": _TRIAL | {"point": dict, "params": dict, "num_parameters": int},
    "started": _TRIAL,
    "reported": _TRIAL | _REPORTED,
    "decided": _TRIAL | {"step": int, "action": str, "reason": str},
    "saved": _TRIAL | {"step": int},
    "trouble": _TRIAL | {"what": str},
    "ended": _TRIAL | _ENDED,
    "retraining": {"finalists": list, "seeds": int},
    "retrain_started": _SEED,
    "retrain_reported": _SEED | _REPORTED,
    "retrain_saved": _SEED | {"step": int},
    "retrain_trouble": _SEED | {"what": str},
    "retrain_ended": _SEED | _ENDED,
    "tested": _SEED | {"score": float, "standard_error": float},
    "winner": _SEED | {"params": dict, "validation": dict, "test": dict},
    "finished": {"state": str},
    "resumed": {},
}
_SCORED = {"score": float, "standard_error": float, "loss": float}  # of a report, all or none


class Journal:
    """Append-only lines. A last line torn by a kill is dropped on reading and overwritten on writing.

    Args:
        path: The file; made when the first event is appended.
        clock: Seconds since the epoch, for the events' times.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def append(self, event: Event) -> Event:
        """Write an event with the time it happened, through to the disk.

        Returns:
            The event as written.

        Raises:
            StorageError: It cannot be written; the journal ends with the event before.
        """
        stamped = {"event": event["event"], "time": round(self._clock(), 3)} | event
        line = json.dumps(stamped, allow_nan=True).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.truncate(self._whole_bytes())
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then the same command with "
                f"--resume {self.path.parent} goes on"
            ) from error
        return stamped

    def tell(self, event: Event, listeners: Iterable[Listener]) -> None:
        """Write an event, and only then let others know of it."""
        written = self.append(event)
        for listener in listeners:
            listener(written)

    def read(self) -> Iterator[Event]:
        """Events in order; nothing where there is no file.

        Raises:
            StateError: A line before the last is not JSON, or not an event with what its kind must have: names the
                file and the line.
        """
        if not self.path.exists():
            return
        lines = self.path.read_bytes()[: self._whole_bytes()].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
                _check(event)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise StateError(f"{self.path}, line {number}: not an event ({error})") from error
            yield event

    def _whole_bytes(self) -> int:
        """Length up to the end of the last whole line."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 4096)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    return start + newline + 1
                end = start
        return 0


def _check(event: Event) -> None:
    """Raise where an event lacks what its kind must have."""
    if not isinstance(event["event"], str):
        raise TypeError("event is not a name")
    fields: dict[str, type] = {}
    if event["event"] in EVENTS:
        fields = {"time": float, **EVENTS[event["event"]]}
    if event["event"].endswith("reported") and "score" in event:
        fields |= _SCORED
    for name, kind in fields.items():
        allowed = (int, float) if kind is float else kind
        if not isinstance(event[name], allowed) or isinstance(event[name], bool):
            raise TypeError(f"{name} is {event[name]!r}")
