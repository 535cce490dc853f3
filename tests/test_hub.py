import errno
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from adept_tune import hub
from adept_tune.errors import HubError, TaskError
from tests.tasks import fake_hub


@pytest.fixture(autouse=True)
def _unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not asked yet, and is what it was before once the test is over."""
    import datasets

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(variable, "")  # so that it is removed afterwards, whoever sets it
        monkeypatch.delenv(variable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_answers", {})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with fake_hub.serve() as (url, requests):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        yield requests


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(hub, "DEADLINE_S", 0.3)
        yield url


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the network was asked")


def failing(exc: BaseException) -> str:
    """The message of `access` when its block fails like this."""
    with pytest.raises(HubError) as caught, hub.access("model a/b", "--model DIR"):
        raise exc
    return str(caught.value)


def response(status: int) -> Any:
    """What the errors of huggingface_hub carry, from whichever HTTP client it uses."""
    client = sys.modules[type(hub_session()).__module__.partition(".")[0]]
    return client.Response(status, request=client.Request("GET", "http://127.0.0.1:9/a/b"))


def hub_session() -> Any:
    from huggingface_hub import get_session

    return get_session()


# --- is it there? ---


def test_prepare_counts_any_answer_as_reachable_and_asks_once(served: list[str]) -> None:
    assert hub.prepare() is True
    assert hub.prepare() is True
    assert served == ["HEAD /"]  # answered with 404
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not constants.is_offline_mode()


def test_prepare_switches_loaded_libraries_to_their_caches_when_nothing_answers() -> None:
    import datasets

    assert hub.prepare() is False
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(OfflineModeIsEnabled):
        hub_session().get("http://127.0.0.1:9/")


def test_prepare_stays_offline_when_the_hub_comes_back_later(served: list[str]) -> None:
    url, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    assert hub.prepare() is False
    constants.ENDPOINT = url
    assert hub.prepare() is False
    assert served == []


def test_prepare_gives_up_on_a_hub_that_does_not_answer(silent: str) -> None:
    start = time.monotonic()
    assert hub.prepare() is False
    assert time.monotonic() - start < 2
    message = failing(OfflineModeIsEnabled("offline"))
    assert f"the Hub at {silent} could not be reached" in message


def test_prepare_gives_up_on_a_name_lookup_that_hangs(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(2) or [])
    start = time.monotonic()
    assert hub.prepare() is False
    assert time.monotonic() - start < 1.5
    assert "no answer within 0.3 s; HF_HUB_OFFLINE=0 waits" in failing(OfflineModeIsEnabled("offline"))


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_prepare_asks_nobody_when_told_to_stay_offline(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(hub, "_silence", refuse)
    assert hub.prepare() is False
    assert constants.is_offline_mode()  # also where the libraries were imported before it was set


def test_prepare_asks_nobody_when_told_that_the_hub_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "_silence", refuse)
    assert hub.prepare() is True


# --- what the message says ---


def test_access_yields_whether_the_hub_may_be_asked(served: list[str]) -> None:
    with hub.access("model a/b", "--model DIR") as online:
        assert online is True


def test_access_tells_offline_by_choice_from_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = failing(OfflineModeIsEnabled("offline"))
    assert "model a/b is not in the local cache (" in unreachable
    assert "the Hub at http://127.0.0.1:9 could not be reached (ConnectError: " in unreachable
    assert unreachable.endswith("connect and try again, or give --model DIR")
    monkeypatch.setattr(hub, "_answers", {})
    chosen = failing(OfflineModeIsEnabled("offline"))
    assert "HF_HUB_OFFLINE is set, so the Hub at http://127.0.0.1:9 was not asked; unset it" in chosen


def test_access_tells_a_connection_that_broke_after_the_first_answer(served: list[str]) -> None:
    lost = LocalEntryNotFoundError("cannot find the file in the cache")
    lost.__cause__ = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    message = failing(lost)
    assert f"the Hub at {constants.ENDPOINT} could not be reached (ConnectionResetError: " in message
    assert "Connection reset by peer" in message


def test_access_turns_errors_of_the_http_client_into_a_message(served: list[str]) -> None:
    client = sys.modules[type(hub_session()).__module__.partition(".")[0]]
    assert "could not be reached (ConnectTimeout: too slow)" in failing(client.ConnectTimeout("too slow"))


def test_access_says_when_the_hub_does_not_have_it(served: list[str]) -> None:
    missing = OSError("a/b is not a local folder and is not a valid model identifier")
    missing.__cause__ = RepositoryNotFoundError("404", response=response(404))
    message = failing(missing)
    assert f"model a/b does not exist on the Hub at {constants.ENDPOINT}, or is private" in message
    assert "could not be reached" not in message


def test_access_says_when_terms_must_be_accepted(served: list[str]) -> None:
    assert "model a/b is gated on the Hub" in failing(GatedRepoError("403", response=response(403)))


def test_access_says_when_the_name_is_none(served: list[str]) -> None:
    assert "model a/b: not a name that the Hub" in failing(HFValidationError("Repo id must use ..."))


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied", "/cache/models"),
    ],
)
def test_access_does_not_blame_the_network_for_a_disk(trouble: OSError) -> None:
    message = failing(trouble)
    assert message.startswith("model a/b could not be loaded (")
    assert str(trouble.strerror) in message
    assert "could not be reached" not in message


def test_access_passes_other_failures_on_in_one_line(served: list[str]) -> None:
    message = failing(OSError("a/b does not appear to have\na file named config.json"))
    assert (
        f"could not be loaded from the Hub at {constants.ENDPOINT} (OSError: a/b does not appear to have a" in message
    )


def test_access_leaves_our_own_errors_and_defects_alone(served: list[str]) -> None:
    for exc in (TaskError("ours"), ValueError("a defect"), HubError("already told")):
        with pytest.raises(type(exc), match=str(exc)) as caught, hub.access("model a/b", "--model DIR"):
            raise exc
        assert caught.value is exc


# --- with the ordinary libraries, in processes of their own ---


def run(*args: str, home: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run Python as a user would who has set nothing but these variables; return also the seconds it took."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    env = kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | variables
    start = time.monotonic()
    done = subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - start


SHOW = ("-m", "adept_tune.tasks", "show", "cola", "--rows", "1")


def test_show_reads_from_the_hub_and_from_its_cache_once_the_hub_is_gone(tmp_path: Path) -> None:
    with fake_hub.serve() as (url, requests):
        first, _ = run(*SHOW, home=tmp_path, HF_ENDPOINT=url)
        assert (first.returncode, first.stdout.splitlines()) == (
            0,
            [
                "cola from nyu-mll/glue (cola): 6 train, 2 validation, 3 test; styles of target: digits | words",
                "train 0: sentence: train 0 -> 0 | unacceptable",
            ],
        )
        assert any(request.endswith("/cola/train.jsonl") for request in requests)
    second, _ = run(*SHOW, home=tmp_path, HF_ENDPOINT=url)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert second.stderr == first.stderr  # the warning about row counts, and nothing from the libraries


def test_show_ends_within_seconds_in_one_message_when_there_is_neither_hub_nor_cache(tmp_path: Path) -> None:
    done, seconds = run(*SHOW, home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in (
        "error: data set nyu-mll/glue (cola) is not in the local cache",
        str(tmp_path),
        "the Hub at http://127.0.0.1:9 could not be reached",
        "--data-dir DIR with DIR/cola/train.jsonl and DIR/cola/validation.jsonl",
    ):
        assert part in done.stderr
    assert seconds < 10


def test_show_says_which_configuration_the_hub_lacks(tmp_path: Path) -> None:
    with fake_hub.serve() as (url, _):
        done, _ = run("-m", "adept_tune.tasks", "show", "rte", home=tmp_path, HF_ENDPOINT=url)
    assert done.returncode == 2
    assert "data set nyu-mll/glue (rte) could not be loaded from the Hub" in done.stderr
    assert "Available: ['cola']" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_process_ends_at_once_though_the_name_lookup_still_hangs(tmp_path: Path) -> None:
    code = """
        import socket, time
        import adept_tune.hub as hub
        real = socket.getaddrinfo
        socket.getaddrinfo = lambda *args, **kwargs: time.sleep(60)
        from transformers import AutoTokenizer
        start = time.monotonic()
        try:
            with hub.access("model a/b", "--model DIR"):
                AutoTokenizer.from_pretrained("a/b")
        except hub.HubError as exc:
            print(exc)
        print(time.monotonic() - start)
    """
    done, seconds = run("-c", textwrap.dedent(code), home=tmp_path, HF_ENDPOINT="https://hub.invalid")
    message, waited = done.stdout.splitlines()
    assert done.returncode == 0
    assert "model a/b is not in the local cache" in message
    assert "https://hub.invalid could not be reached (no answer within 3 s" in message
    assert float(waited) < 4.5
    assert seconds < 30  # imports included, on a busy machine
