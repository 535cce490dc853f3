"""Programs of a model run in a process of their own, with little time, memory and reach."""

import os
import time
from pathlib import Path

import pytest

from adept_tune.errors import TaskError
from adept_tune.tasks import TASKS, execution
from adept_tune.tasks.execution import check_permitted, passes_all

NEEDS = ["", "assert f(1) == 2"]
GOOD = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        (GOOD, True),
        (f"print('noise' * 1000)\n{GOOD}", True),
        ("def f(x):\n    return x", False),
        ("def f(x:", False),
        ("", False),
        ("exit()", False),
        ("import os\nos._exit(0)", False),
        ("import sys\nprint('passed')\nsys.exit(0)", False),
        ("raise KeyboardInterrupt", False),
    ],
)
def test_a_program_passes_where_it_and_its_tests_run_to_the_end(program: str, passed: bool) -> None:
    assert passes_all([program], [NEEDS]) == [passed]


def test_what_a_program_needs_stands_before_it() -> None:
    assert passes_all(["def f(x):\n    return y"], [["y = 2", "assert f(1) == 2"]]) == [True]


def test_a_program_has_little_memory() -> None:
    assert passes_all([f"{GOOD}\nbig = bytearray({execution.MEMORY_BYTES})"], [NEEDS]) == [False]


@pytest.mark.parametrize("slow", ["while True:\n    pass", "import time\ntime.sleep(60)"], ids=["busy", "idle"])
def test_a_program_has_little_time(slow: str) -> None:
    begun = time.monotonic()
    assert passes_all([f"{GOOD}\n{slow}"], [NEEDS]) == [False]
    assert time.monotonic() - begun < 4 * execution.SECONDS


def test_what_ends_scoring_ends_the_programs() -> None:
    begun = time.monotonic()

    def proceed() -> None:
        if time.monotonic() > begun + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passes_all(["import time\ntime.sleep(60)"] * 20, [NEEDS] * 20, proceed)
    assert time.monotonic() - begun < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's programs may start others")
def test_a_program_sees_no_environment_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "x")
    told = tmp_path / "told"
    program = (
        f"{GOOD}\nimport os, subprocess\nassert 'SECRET' not in os.environ\nopen('left', 'w').write('x')\n"
        f"child = subprocess.Popen(['sleep', '300'])\nopen({str(told)!r}, 'w').write(f'{{os.getcwd()}} {{child.pid}}')"
    )
    assert passes_all([program], [NEEDS]) == [True]
    folder, pid = told.read_text().split()
    assert not Path(folder).exists()
    deadline = time.monotonic() + 10  # a killed process is gone when the system gets to it
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_programs_are_run_only_where_a_person_allows_it() -> None:
    check_permitted(TASKS["mbpp"], allowed=True)
    check_permitted(TASKS["cola"], allowed=False)
    with pytest.raises(TaskError, match=r"task mbpp: its answers are programs .*; give --allow-code-execution"):
        check_permitted(TASKS["mbpp"], allowed=False)
