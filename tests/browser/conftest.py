"""MLflow's server as the search says to start it, and a browser."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.finished import Finished

SEARCH_LIMIT_S, START_LIMIT_S, WAIT_MS = 900, 120, 8_000
OWN_SERVER = "http://127.0.0.1:5000"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the browser is. Asked for before anything that takes time."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install -e '.[test]'")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on the PATH; install Debian's package of that name")
    return path


@pytest.fixture(scope="session")
def look(chromium: str, finished: Finished) -> tuple[str, str]:
    """The command and the address that the search ends with."""
    found = re.search(r"^Look: +(\S.*)\n +and open (\S+)$", finished.output, re.M)
    assert found is not None, finished.output
    return found[1], found[2]


@pytest.fixture(scope="module")
def trials_page(look: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the table of trials, whose server runs as the search says; only the port is another."""
    command, address = look
    assert address.startswith(OWN_SERVER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = tmp_path_factory.mktemp("server")
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            ["env", *shlex.split(command), "--port", str(port)],
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_answer(f"http://127.0.0.1:{port}/health", server, place / "log")
            yield address.replace(OWN_SERVER, f"http://127.0.0.1:{port}")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _await_answer(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page of somebody who has never been here; large, since the table draws only what can be seen."""
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT_MS)
    context = browser.new_context(viewport={"width": 2600, "height": 1400})
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()
