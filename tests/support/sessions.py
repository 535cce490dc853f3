"""Searches in processes of their own, to be killed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from adept_tune.tuning.journal import Journal
from adept_tune.tuning.spec import JOURNAL

ROOT = Path(__file__).resolve().parents[2]
MARK = "ADEPT_TUNE_TEST"
LIMIT_S = 240.0


class Session:
    """One session of a search; `end_all` ends what a failed test left.

    Args:
        arguments: Of `adept_tune.search`; `--experiment` is added.
        folder: The experiment.
        cache: Folder for tokens.
        module: What is run.
    """

    _begun: ClassVar[list["Session"]] = []

    def __init__(
        self, arguments: list[str], folder: Path, cache: Path, module: str = "adept_tune.search", **environment: str
    ) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._log = folder.parent / f"{folder.name}-{self._mark[:6]}.log"
        given = {MARK: self._mark, "PYTHONPATH": str(ROOT), "ADEPT_TUNE_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, "--experiment", str(folder)],
                env=kept | given | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._begun.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill every process of a session that is still there, so that it disturbs no later test."""
        while cls._begun:
            session = cls._begun.pop()
            if session.process.poll() is None:
                for pid in session.pids(""):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                session.process.wait(LIMIT_S)

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Whole lines of the journal, of some kinds or all."""
        if not self.folder.exists():
            return []
        found = Journal(self.folder / JOURNAL).read()
        return [event for event in found if not kinds or event["event"] in kinds]

    def until(self, reached: Callable[[], Any]) -> Any:
        """Wait for something; give what it gave."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := reached()):
            assert self.process.poll() is None, f"it ended early:\n{self.output}"
            assert time.monotonic() < deadline, f"in vain:\n{self.output}"
            time.sleep(0.02)
        return found

    def pids(self, title: str) -> list[int]:
        """Its processes whose command line begins so."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().decode(errors="replace")
                if line.startswith(title) and f"{MARK}={self._mark}".encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue  # it has ended meanwhile
        return found

    def kill(self, title: str) -> None:
        """Kill those of its processes whose command line begins so, once there are any."""
        for pid in self.until(lambda: self.pids(title)):
            os.kill(pid, signal.SIGKILL)

    def end(self) -> int:
        """Wait for its end; its exit code."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"it does not end:\n{self.output}") from None


def said_twice(events: list[dict[str, Any]]) -> list[Any]:
    """Reports and true ends that are there more than once."""
    counts = Counter(
        (event["event"], event["trial"], event.get("seed"), event["step"] if "reported" in event["event"] else None)
        for event in events
        if event["event"].endswith(("reported", "ended")) and event.get("state") != "INTERRUPTED"
    )
    return [key for key, count in counts.items() if count > 1]


def mlflow_states(database: Path) -> Counter[str]:
    """How many runs there are of each kind and status."""
    connection = sqlite3.connect(database)
    rows = connection.execute(
        "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'kind'"
    ).fetchall()
    connection.close()
    return Counter(f"{kind} {status}" for kind, status in rows)


def scores(events: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Every trial's and retraining's scores by step, to compare searches by."""
    found: dict[str, list[Any]] = {}
    for event in events:
        if "score" in event and event["event"].endswith("reported"):
            name = json.dumps([event["trial"], event.get("seed")])
            found.setdefault(name, []).append((event["step"], event["score"]))
    return {name: sorted(values) for name, values in found.items()}
