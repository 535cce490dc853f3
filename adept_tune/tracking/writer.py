"""A thread that writes items in their order and keeps them while the far end is away."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

NEVER_PASSES = (TypeError, ValueError, LookupError, AttributeError, ImportError, FileNotFoundError)
REFUSALS = {
    "BAD_REQUEST",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""Error codes of MLflow for what will be refused again."""


class OrderedWriter(Generic[Item]):
    """Applies items one after another, in a daemon thread.

    An item that fails is tried again, with growing pauses, and nothing overtakes it: what is behind it may
    build on it. It is given up only when the error says that it will never be taken, or when it has failed
    `max_attempts` times although the far end answers.
    """

    def __init__(
        self,
        apply: Callable[[Item], None],
        answers: Callable[[], bool],
        *,
        first_pause_s: float = 0.5,
        longest_pause_s: float = 30.0,
        closing_pause_s: float = 0.25,
        max_attempts: int = 5,
    ) -> None:
        """Set up an idle writer.

        Args:
            apply: Writes one item; called in the writer's thread only. It must bear being called again.
            answers: Whether the far end is there.
            first_pause_s: Pause after the first failure; doubles with each further one.
            longest_pause_s: Limit of that.
            closing_pause_s: Limit once `close` was called.
            max_attempts: Failures of one item until the far end is asked whether it is there.
        """
        self._apply = apply
        self._answers = answers
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._closing_pause_s = closing_pause_s
        self._max_attempts = max_attempts
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        self.refused: list[tuple[Item, Exception]] = []
        self.last_error: Exception | None = None

    def start(self) -> None:
        """Start the thread, once."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="adept_tune-tracking", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Take an item; never waits for a write."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def close(self, deadline_s: float) -> list[Item]:
        """Write what is left and stop.

        Args:
            deadline_s: Time for that. A write that still hangs then is abandoned.

        Returns:
            The items that were not written, in order.
        """
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(deadline_s)
        self._given_up.set()
        with self._changed:
            return list(self._items)

    def _run(self) -> None:
        while not self._given_up.is_set():
            with self._changed:
                while not self._items and not self._closing.is_set():
                    self._changed.wait()
                if not self._items:
                    return
                item = self._items[0]  # stays first until written, so that `close` counts it
            if self._write(item):
                with self._changed:
                    self._items.popleft()

    def _write(self, item: Item) -> bool:
        """Try until the item is written or refused; False when told to give up."""
        failures = 0
        while not self._given_up.is_set():
            try:
                self._apply(item)
                return True
            except Exception as error:  # whatever it is, it must not end the thread
                failures += 1
                self.last_error = error
                if self._hopeless(error, failures):
                    self.refused.append((item, error))
                    return True
            self._pause(failures)
        return False

    def _hopeless(self, error: Exception, failures: int) -> bool:
        if isinstance(error, NEVER_PASSES) or getattr(error, "error_code", None) in REFUSALS:
            return True
        return failures >= self._max_attempts and self._answers()

    def _pause(self, failures: int) -> None:
        """Wait longer after each failure, but not while somebody waits in `close`."""
        pause_s = min(self._longest_pause_s, self._first_pause_s * 2 ** min(failures - 1, 30))
        if not self._closing.wait(pause_s):
            return
        self._given_up.wait(min(pause_s, self._closing_pause_s))
