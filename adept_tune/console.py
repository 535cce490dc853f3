"""What a person sees while a search runs: plain lines, one an event that matters."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

QUIET_S = 15.0  # longest silence while trials report


class Console:
    """Lines for people on standard output; events in, lines out.

    Args:
        stream: Where to write.
        clock: Seconds, for the time column.
    """

    def __init__(self, stream: TextIO = sys.stdout, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._begun = clock()
        self._last_line = self._begun
        self._running: dict[str, str] = {}
        self._metric = "score"

    def say(self, text: str = "") -> None:
        """A line, or several."""
        print(text, file=self._stream, flush=True)
        self._last_line = self._clock()

    def table(self, heads: list[str], rows: list[list[str]]) -> None:
        """Aligned columns, the first to the left, the others to the right."""
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        for row in [heads, *rows]:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            self.say("  " + "  ".join(cells).rstrip())

    def measure(self, metric: str) -> None:
        """Name the score."""
        self._metric = metric

    def event(self, event: Mapping[str, Any]) -> None:
        """Say what a person wants to know of an event, and something at least every `QUIET_S` seconds."""
        line = self._line(event)
        if line:
            self._timed(line)
        elif self._running and self._clock() - self._last_line > QUIET_S:
            self._timed("training: " + ", ".join(f"{name} {what}" for name, what in self._running.items()))

    def _timed(self, line: str) -> None:
        elapsed = int(self._clock() - self._begun)
        self.say(f"[{elapsed // 60:3d}:{elapsed % 60:02d}] {line}")

    def _line(self, event: Mapping[str, Any]) -> str | None:
        kind = event["event"].removeprefix("retrain_")
        name = f"trial {event.get('trial', '')}" + (f" seed {event['seed']}" if "seed" in event else "")
        if kind == "proposed":
            return f"{name}: {shown(event['params'])} ({event['num_parameters']:,} parameters)"
        if kind == "reported":
            self._running[name] = f"step {event['step']} loss {event['train_loss']:.3f}"
            if "score" in event:
                return f"{name}: step {event['step']}, {self._metric} {event['score']:.4f}, loss {event['loss']:.4f}"
        if kind == "ended":
            self._running.pop(name, None)
            return f"{name}: {event['state']} at step {event['step']} ({event['reason']})"
        if kind == "tested":
            return f"{name}: test {self._metric} {event['score']:.4f}"
        return None


def shown(params: Mapping[str, Any]) -> str:
    """A configuration on one line."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in params.items()
    )
