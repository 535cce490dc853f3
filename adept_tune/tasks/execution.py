"""Runs generated programs against a task's tests, each in a process of its own with little time and memory.

That keeps mistakes in bounds, not malice: a program can do whatever its user can, such as delete files, use the network
or end other processes. It runs only where a person has asked for it (`--allow-code-execution`); who does not trust the
model runs the search in a container.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from adept_tune.errors import TaskError
from adept_tune.tasks.task import Task

SECONDS = 5
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20

# Sets its own limits and then becomes the program: code given to a child before exec is not safe among threads. The
# word to say at the end comes in with the program, whose own output goes nowhere.
_RUNNER = f"""
import os, resource, sys
word, _, source = sys.stdin.read().partition("\\n")
told = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
limits = {{"CPU": {SECONDS}, "AS": {MEMORY_BYTES}, "FSIZE": {FILE_BYTES}, "CORE": 0, "NPROC": 0}}
for kind, most in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
exec(compile(source, "program", "exec"), {{"__name__": "__main__"}})
os.write(told, word.encode())
"""


def check_permitted(task: Task, allowed: bool) -> None:
    """See that a task whose answers are programs is asked for in full knowledge of it.

    Raises:
        TaskError: It is not.
    """
    if task.runs_code and not allowed:
        raise TaskError(
            f"task {task.name}: its answers are programs that a model wrote, and scoring them runs them on this "
            "machine; give --allow-code-execution if you want that"
        )


def passes_all(
    programs: Sequence[str], needs: Sequence[Sequence[str]], proceed: Callable[[], None] = lambda: None
) -> list[bool]:
    """Run each program followed by its tests.

    Args:
        programs: Source texts.
        needs: For each, what has to stand before it, then the tests.
        proceed: Called a few times a second; what it raises ends all that runs.

    Returns:
        Whether a program and all its tests ran to the end without an error, within the limits.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(_passes, program, need, stop) for program, need in zip(programs, needs, strict=True)]
        try:
            while wait(runs, timeout=0.2).not_done:
                proceed()
        finally:
            stop.set()
    return [run.result() for run in runs]


def _passes(program: str, needs: Sequence[str], stop: threading.Event) -> bool:
    setup, *tests = needs
    word = uuid.uuid4().hex
    source: bytes | None = "\n".join([word, setup, program, *tests]).encode()
    deadline = time.monotonic() + 2 * SECONDS
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-I", "-c", _RUNNER],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        try:
            while not stop.is_set() and time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.communicate(source, timeout=0.2)[0] == word.encode()
                source = None  # is being written
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # whatever it started in its session
