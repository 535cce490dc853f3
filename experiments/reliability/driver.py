"""Run a search that is killed with its whole process group at one point of its journal.

The point is a line of the journal and a place: `before` it is written (its trial's state has been), `inside` it (half
of its bytes have), or `after` it, by a delay that falls into the training that follows.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from adept_tune import search
from adept_tune.tasks import TASKS
from adept_tune.tuning.journal import Event, Journal

PLACES = ("before", "inside", "after")


def kill() -> None:
    """End every process of this process group, as a machine that goes away does."""
    os.killpg(0, signal.SIGKILL)


def arm(line: int, place: str, delay_s: float) -> None:
    """Make the journal of this process kill it.

    Args:
        line: Number of the line, from 0.
        place: One of `PLACES`.
        delay_s: Seconds from the writing of the line to the kill, where the place is `after`.
    """
    append = Journal.append

    def armed(self: Journal, event: Event) -> Event:
        if sum(1 for _ in self.read()) < line:
            return append(self, event)
        if place == "before":
            kill()
        if place == "inside":
            text = json.dumps(event).encode()
            with self.path.open("ab") as file:
                file.write(text[: len(text) // 2])
                file.flush()
                os.fsync(file.fileno())
            kill()
        written = append(self, event)
        threading.Timer(delay_s, kill).start()
        return written

    Journal.append = armed  # type: ignore[method-assign]


def main(argv: list[str] | None = None) -> int:
    """Arm the journal where a line is given, and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", type=int, help="line of the journal at which to die (default: live)")
    parser.add_argument("--place", choices=PLACES, default="after", help="where at that line (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds after the line (default: %(default)s)")
    parser.add_argument("search", nargs=argparse.REMAINDER, help="-- and the arguments of adept_tune.search")
    args = parser.parse_args(argv)
    # With a plateau that is known to be short the rungs begin early: three of them in few steps.
    TASKS["demo"] = replace(TASKS["demo"], plateau_steps=5)
    if args.line is not None:
        arm(args.line, args.place, args.delay)
    return search.main([word for word in args.search if word != "--"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
