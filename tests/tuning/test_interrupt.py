"""Ctrl-C, in processes of their own."""

import signal
import subprocess
import sys
import threading

import pytest

from adept_tune.tuning.interrupt import Interrupt

SCRIPT = """
import time
from adept_tune.tuning.interrupt import Interrupt
interrupt = Interrupt()
try:
    with interrupt.heeded(), {block}:
        print("ready", flush=True)
        begun = time.monotonic()
        while not interrupt.asked and time.monotonic() < begun + 20:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(20)
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
"""


def started(block: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import contextlib\n" + SCRIPT.format(block=block)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    return process


def test_the_first_is_noted_while_somebody_watches_and_the_second_ends_the_process_at_once():
    process = started("interrupt.watched()")
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "--resume" in errors


def test_it_is_a_keyboard_interrupt_while_nobody_watches():
    process = started("contextlib.nullcontext()")
    out, _ = process.communicate(timeout=10)
    assert out == "KeyboardInterrupt\n"
    assert process.returncode == 0


def test_the_handler_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt().heeded():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_a_thread_other_than_the_main_one_changes_nothing():
    faults: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with Interrupt().heeded():
                pass
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not faults


@pytest.mark.parametrize("watched", [True, False])
def test_asked_is_remembered(watched):
    interrupt = Interrupt()
    with interrupt.heeded():
        if watched:
            with interrupt.watched():
                signal.raise_signal(signal.SIGINT)
        else:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert interrupt.asked
