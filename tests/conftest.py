"""Settings of every test."""

import os
from collections.abc import Iterator

import pytest

from tests.support.finished import Finished, search_demonstration
from tests.support.sessions import Session

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a network
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads cost more than they bring
for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "ADEPT_TUNE_MAX_GPUS"):  # searches of tests stay on their own
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demonstration, searched once for all tests that look at it."""
    return search_demonstration(tmp_path_factory.mktemp("demo"))


@pytest.fixture(autouse=True)
def no_session_outlives_its_test() -> Iterator[None]:
    """What a failed test has begun is ended."""
    yield
    Session.end_all()
