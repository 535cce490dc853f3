"""Runs generated programs against a task's tests, each in a process of its own with little time, memory and reach.

This is no prison: a program can still read what its user may read and use the network. It runs only where a person has
asked for it (`--allow-code-execution`).
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from adept_tune.errors import TaskError
from adept_tune.tasks.task import Task

SECONDS = 10
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20

# Sets its own limits and then becomes the program: code given to a child before exec is not safe among threads. The
# word to say at the end comes in with the program, whose own output goes nowhere.
_RUNNER = f"""
import os, resource, sys
word, _, source = sys.stdin.read().partition("\\n")
told = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for kind, most in (("CPU", {SECONDS}), ("AS", {MEMORY_BYTES}), ("FSIZE", {FILE_BYTES}), ("CORE", 0)):
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


def passes_all(programs: Sequence[str], needs: Sequence[Sequence[str]]) -> list[bool]:
    """Run each program followed by its tests.

    Args:
        programs: Source texts.
        needs: For each, what has to stand before it, then the tests.

    Returns:
        Whether a program and all its tests ran to the end without an error, within the limits.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_passes, programs, needs))


def _passes(program: str, needs: Sequence[str]) -> bool:
    setup, *tests = needs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # A session of its own, so that what the program starts ends with it; no environment, so no secrets in it.
        with subprocess.Popen(
            [sys.executable, "-I", "-c", _RUNNER],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            word = uuid.uuid4().hex
            try:
                said, _ = process.communicate("\n".join([word, setup, program, *tests]).encode(), timeout=2 * SECONDS)
            except subprocess.TimeoutExpired:
                return False
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)  # whatever it started
        return said == word.encode()
