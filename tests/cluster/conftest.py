"""A Ray cluster whose nodes come and go."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.search import save_answering_t5, write_rows
from tests.support.sessions import ROOT

SPACE = """
method: adept
parameters:
  prompt_length: {low: 2, high: 12}
  ffn_width: {low: 1, high: 6}
  prompt_lr: {low: 0.03, high: 0.3, log: true}
"""


class RemoteNodes:
    """The process of `tests.cluster.nodes`, and what to give a search that joins.

    Attributes:
        address: Of the cluster.
        environment: For processes that join it.
    """

    def __init__(self, folder: Path, *nodes: tuple[str, int, int]) -> None:
        self.environment = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
        with (folder / "nodes.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.nodes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | self.environment | {"PYTHONPATH": str(ROOT)},
                text=True,
            )
        self.ids = {name: self.ask("add", name, cpus, gpus) for name, cpus, gpus in nodes}
        self.address: str = self.ask("connect")

    def ask(self, command: str, *arguments: Any) -> Any:
        """Give a command; its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(" ".join([command, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(f"the cluster's process ended at {command}")

    def host_nodes(self) -> list[str]:
        """Ids of the nodes that have a host, as far as a host's name tells them; one a host."""
        return sorted(name.split(":")[2] for name in self.ask("hosts"))

    def end(self) -> None:
        """Stop all nodes, and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


@contextmanager
def cluster_of(*nodes: tuple[str, int, int]) -> Iterator[RemoteNodes]:
    """A cluster of nodes given as (name, CPUs, GPUs), the head first."""
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # a socket's path has room for 107 characters
    remote = RemoteNodes(folder, *nodes)
    try:
        yield remote
    finally:
        remote.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def with_gpus() -> Iterator[RemoteNodes]:
    """A head without, and three nodes with a logical GPU each."""
    with cluster_of(("head", 2, 0), ("a", 1, 1), ("b", 1, 1), ("c", 1, 1)) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def without_gpus() -> Iterator[RemoteNodes]:
    """Two nodes of different size."""
    with cluster_of(("head", 2, 0), ("small", 1, 0)) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows and a space."""
    folder = tmp_path_factory.mktemp("places")
    save_answering_t5(folder / "model")
    write_rows(folder / "data", num_train=300, num_validation=40)
    (folder / "own.yaml").write_text(SPACE)
    return folder
