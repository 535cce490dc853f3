"""Where trial states are kept: a folder on the driver's disk or any fsspec URI."""

import contextlib
import os
import re
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from adept_tune.errors import SpecError, StateError, StorageError

KEPT_STATES = 2

_JOB = re.compile(r"trial-\d{4,}(-seed-\d+)?")


class Store:
    """Trial states by job and step; the last two of each are kept, more only where one could not be removed.

    Args:
        root: A folder or an fsspec URI (`s3://bucket/path`).
    """

    def __init__(self, root: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise SpecError(f"--storage {root}: {error}") from error

    def check(self) -> None:
        """See that something can be written.

        Raises:
            SpecError: It cannot.
        """
        path = f"{self._root}/.written-{uuid.uuid4().hex}"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(path, b"")
            self._files.rm_file(path)
        except Exception as error:  # each kind of storage has errors of its own
            raise SpecError(f"--storage {self._root}: cannot write there ({error}); give another") from error

    def write(self, job: str, step: int, blob: bytes) -> None:
        """Keep a state, whole or not at all; drop the job's third-last, and later ones, which are of another run.

        Raises:
            StorageError: It cannot be written.
        """
        path = self._path(job, step)
        try:
            self._files.makedirs(self._files._parent(path), exist_ok=True)
            self._files.pipe_file(f"{path}.part", blob)
            if isinstance(self._files, LocalFileSystem):  # before the journal names it, which is on the disk by then
                with Path(f"{path}.part").open("rb+") as file:
                    os.fsync(file.fileno())
            self._files.mv(f"{path}.part", path)
        except Exception as error:  # each kind of storage has errors of its own
            raise StorageError(
                f"{path}: cannot be written ({error}); make room, then the same command with --resume goes on"
            ) from error
        others = self.steps(job)
        earlier, later = [o for o in others if o < step], [o for o in others if o > step]
        for old in earlier[: -(KEPT_STATES - 1)] + later:
            with contextlib.suppress(Exception):  # one state too many hurts nobody
                self._files.rm_file(self._path(job, old))

    def read(self, job: str, step: int) -> tuple[bytes, str]:
        """A state's bytes and where they came from.

        Raises:
            StateError: It is not there.
        """
        path = self._path(job, step)
        try:
            blob: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            raise StateError(f"{path}: no such state; {job} has steps {self.steps(job)}") from None
        return blob, path

    def place(self, job: str, step: int) -> str:
        """Where a state lies, for messages."""
        return self._path(job, step)

    def steps(self, job: str) -> list[int]:
        """Steps of which a state is kept, ascending."""
        folder = f"{self._root}/{job}"
        self._files.invalidate_cache(folder)  # another process writes there
        try:
            names: list[Any] = self._files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        stems = [str(name).rsplit("/", 1)[-1] for name in names]
        return sorted(int(stem[5:-12]) for stem in stems if stem.startswith("step-") and stem.endswith(".safetensors"))

    def drop(self, job: str) -> None:
        """Drop all states of a job, or leave what cannot be removed."""
        folder = f"{self._root}/{job}"
        with contextlib.suppress(Exception):  # states too many hurt nobody
            if self._files.exists(folder):
                self._files.rm(folder, recursive=True)

    def keep_only(self, jobs: set[str]) -> None:
        """Drop the states of all other jobs, and nothing that is not a job's."""
        try:
            names = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        for name in names:
            job = str(name).rsplit("/", 1)[-1]
            if _JOB.fullmatch(job) and job not in jobs:
                self.drop(job)

    def _path(self, job: str, step: int) -> str:
        return f"{self._root}/{job}/step-{step:08d}.safetensors"
