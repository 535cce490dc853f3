"""The search's own record: one JSON object a line, flushed before anyone acts on it."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from adept_tune.errors import StateError

Event = dict[str, Any]
Listener = Callable[[Event], None]


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
        """
        stamped = {"event": event["event"], "time": round(self._clock(), 3)} | event
        line = json.dumps(stamped, allow_nan=True).encode() + b"\n"
        with self.path.open("ab") as file:
            file.truncate(self._whole_bytes())
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return stamped

    def tell(self, event: Event, listeners: Iterable[Listener]) -> None:
        """Write an event, and only then let others know of it."""
        written = self.append(event)
        for listener in listeners:
            listener(written)

    def read(self) -> Iterator[Event]:
        """Events in order; nothing where there is no file.

        Raises:
            StateError: A line before the last is not JSON, or is no event: names the file and the line.
        """
        if not self.path.exists():
            return
        lines = self.path.read_bytes()[: self._whole_bytes()].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
                if not isinstance(event["event"], str):
                    raise TypeError("event is not a name")
            except (ValueError, KeyError, TypeError) as error:
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
