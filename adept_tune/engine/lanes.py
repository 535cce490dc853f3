"""Passes side by side on a CPU.

Threads that share one pass wait for each other at every operation, and where the machine does something besides, such
as the trials' own processes, they wait for the scheduler most of the time. Threads with a pass each wait once a step.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Lanes:
    """Runs passes, some at a time, each with an equal part of torch's threads.

    Args:
        num_lanes: Passes at a time; 1 runs them in the caller's thread.
    """

    def __init__(self, num_lanes: int = 1) -> None:
        self._num_threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._count = 1
        if num_lanes > 1:
            self.split(num_lanes)

    @property
    def count(self) -> int:
        """Passes at a time."""
        return self._count

    @property
    def num_threads(self) -> int:
        """Threads of all lanes together."""
        return self._num_threads

    def split(self, num_lanes: int) -> None:
        """Run so many passes at a time from here on; between runs the caller's operations have all threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._count = num_lanes
        torch.set_num_threads(self._num_threads)  # a lane that has ended may have left its own number to some libraries
        each = max(1, self._num_threads // num_lanes)

        def begin_lane() -> None:
            torch.get_num_threads()  # else a thread's first operation gives it the number that was set last, anywhere
            torch.set_num_threads(each)

        if num_lanes > 1:
            self._pool = ThreadPoolExecutor(num_lanes, "lane", initializer=begin_lane)

    def halve(self) -> bool:
        """Run half as many at a time; False where there is one lane."""
        if self._count > 1:
            self.split(self._count // 2)
            return True
        return False

    def run(self, do: Callable[[A], B], passes: Iterable[A]) -> Iterator[B]:
        """Results in the order of the passes, of which one more than there are lanes is begun before it is its turn.

        Until the last is taken the caller's own operations have one thread: more would wait for those of the lanes.
        Where one raises, those that have not begun are dropped, and the error comes once the others are done.
        """
        if self._pool is None:
            yield from map(do, passes)
            return
        with_gradient = torch.is_grad_enabled()  # a thread's own

        def in_lane(one: A) -> B:
            with torch.set_grad_enabled(with_gradient):
                return do(one)

        pool, waiting = self._pool, iter(passes)
        futures = deque(pool.submit(in_lane, one) for one in islice(waiting, self._count + 1))
        torch.set_num_threads(1)
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(pool.submit(in_lane, one) for one in islice(waiting, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
            torch.set_num_threads(self._num_threads)
