"""The writing thread, with hand-made far ends."""

import threading
import time

from adept_tune.tracking.writer import OrderedWriter


class FarEnd:
    """Takes items unless it is away."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.alive = True
        self.failures = 0
        self.poison: dict[int, Exception] = {}

    def apply(self, item: int) -> None:
        error = self.poison.get(item) or (None if self.alive else ConnectionError("away"))
        if error is not None:
            self.failures += 1
            raise error
        self.taken.append(item)

    def answers(self) -> bool:
        return self.alive

    def writer(self, first_pause_s: float = 0.005, longest_pause_s: float = 0.02) -> OrderedWriter[int]:
        return OrderedWriter(
            self.apply,
            self.answers,
            first_pause_s=first_pause_s,
            longest_pause_s=longest_pause_s,
            closing_pause_s=0.005,
        )


class RefusalError(Exception):
    error_code = "INVALID_PARAMETER_VALUE"


def wait_for_failures(end: FarEnd, count: int) -> None:
    deadline = time.monotonic() + 5
    while end.failures < count:
        assert time.monotonic() < deadline, "the writer stopped trying"
        time.sleep(0.002)


def test_writer_keeps_order_through_an_absence() -> None:
    end = FarEnd()
    end.alive = False
    writer = end.writer()
    writer.start()
    for item in range(20):
        writer.put(item)
    wait_for_failures(end, 8)  # more than max_attempts: nothing is given up while the far end is away
    end.alive = True
    assert writer.close(5) == []
    assert end.taken == list(range(20))
    assert writer.refused == []


def test_writer_writes_at_the_end_when_the_far_end_returns_only_then() -> None:
    end = FarEnd()
    end.alive = False
    writer = end.writer(first_pause_s=60, longest_pause_s=60)
    writer.start()
    writer.put(1)
    wait_for_failures(end, 1)
    end.alive = True
    begin = time.monotonic()
    assert writer.close(5) == []  # does not sit out the pause of 60 s
    assert time.monotonic() - begin < 2
    assert end.taken == [1]


def test_writer_close_reports_what_is_left_in_order() -> None:
    end = FarEnd()
    end.alive = False
    writer = end.writer()
    writer.start()
    for item in range(3):
        writer.put(item)
    begin = time.monotonic()
    assert writer.close(0.1) == [0, 1, 2]
    assert time.monotonic() - begin < 2
    assert isinstance(writer.last_error, ConnectionError)


def test_writer_close_abandons_a_write_that_hangs() -> None:
    release = threading.Event()

    def hang(item: int) -> None:
        release.wait(10)

    writer = OrderedWriter(hang, lambda: True)
    writer.start()
    writer.put(1)
    begin = time.monotonic()
    assert writer.close(0.1) == [1]
    assert time.monotonic() - begin < 2
    release.set()


def test_writer_drops_a_refused_item_and_goes_on() -> None:
    end = FarEnd()
    end.poison = {1: RefusalError("a param cannot change"), 2: KeyError("step")}
    writer = end.writer()
    writer.start()
    for item in range(4):
        writer.put(item)
    assert writer.close(5) == []
    assert end.taken == [0, 3]
    assert [item for item, _ in writer.refused] == [1, 2]
    assert end.failures == 2  # each was tried once


def test_writer_gives_up_an_item_that_fails_although_the_far_end_answers() -> None:
    end = FarEnd()
    end.poison = {0: RuntimeError("500")}
    writer = end.writer()
    writer.start()
    writer.put(0)
    writer.put(1)
    assert writer.close(5) == []
    assert end.taken == [1]
    assert end.failures == 5


def test_writer_never_started_gives_everything_back() -> None:
    writer = FarEnd().writer()
    writer.put(1)
    assert writer.close(1) == [1]
