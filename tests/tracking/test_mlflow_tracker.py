"""The tracker: on a fake store, on a real database, and against addresses where nothing answers."""

import contextlib
import math
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from adept_tune.errors import TrackingError
from adept_tune.tracking import MlflowTracker, NullTracker, SearchInfo, Tracker, without_credentials
from adept_tune.tracking.mlflow_store import open_store
from adept_tune.tracking.quiet import quiet
from tests.tracking.fakes import INFO, STATES, TRACEBACK, FakeStore, proposed, search_events


def fake_tracker(folder: Path, store: FakeStore, close_limit_s: float = 5.0) -> MlflowTracker:
    return MlflowTracker(None, folder, store=lambda: store, close_limit_s=close_limit_s, first_pause_s=0.005)


class TrackerContract:
    """What holds for every tracker."""

    def tracker(self, folder: Path) -> Tracker:
        raise NotImplementedError

    def test_tracker_takes_a_whole_search_and_reports_nothing(self, tmp_path: Path) -> None:
        tracker = self.tracker(tmp_path)
        tracker.start(INFO)
        for event in search_events():
            tracker.record(event)
        (tmp_path / "table.csv").write_text("a,b\n")
        tracker.log_artifact(tmp_path / "table.csv", "tables")
        assert tracker.close("FINISHED") == []

    def test_tracker_record_bears_any_event(self, tmp_path: Path) -> None:
        tracker = self.tracker(tmp_path)
        tracker.start(INFO)
        for event in (
            {},
            {"event": "reported"},
            {"event": "ended", "trial": 0, "state": "?"},
            {"event": "new"},
        ):
            tracker.record(event)
        tracker.close("FINISHED")

    def test_tracker_that_prepared_for_a_search_that_never_came_ends(self, tmp_path: Path) -> None:
        before = threading.active_count()
        tracker = self.tracker(tmp_path)
        tracker.prepare()
        assert tracker.close("FAILED") == []
        assert threading.active_count() == before

    def test_tracker_close_twice_and_without_start(self, tmp_path: Path) -> None:
        assert self.tracker(tmp_path).close("FINISHED") == []
        tracker = self.tracker(tmp_path)
        tracker.start(INFO)
        assert [tracker.close("FINISHED"), tracker.close("FINISHED")] == [[], []]


class TestNullTracker(TrackerContract):
    def tracker(self, folder: Path) -> Tracker:
        return NullTracker()


class TestMlflowTracker(TrackerContract):
    def tracker(self, folder: Path) -> Tracker:
        return fake_tracker(folder, FakeStore())


def test_tracker_opens_its_store_once_before_it_starts(tmp_path: Path) -> None:
    store, opened, done = FakeStore(), [], threading.Event()

    def open_fake() -> FakeStore:
        opened.append(threading.get_ident())
        done.set()
        return store

    tracker = MlflowTracker(None, tmp_path, store=open_fake, first_pause_s=0.005)
    tracker.prepare()
    assert done.wait(5)
    assert store.runs == {}
    tracker.start(INFO)
    assert tracker.close("FINISHED") == []
    assert len(opened) == 1
    assert threading.get_ident() not in opened
    assert [run.status for run in store.runs.values()] == ["FINISHED"]


def test_tracker_that_could_not_prepare_tries_again_and_tells(tmp_path: Path) -> None:
    attempts = []

    def absent() -> FakeStore:
        attempts.append(time.monotonic())
        raise ImportError("no MLflow")

    tracker = MlflowTracker(None, tmp_path, store=absent)
    tracker.prepare()
    tracker.start(INFO)
    assert "refused the search run: ImportError: no MLflow" in tracker.close("FINISHED")[0]
    assert len(attempts) == 2


def test_tracker_dead_server_keeps_events_and_writes_them_in_order(tmp_path: Path) -> None:
    store = FakeStore()
    tracker = fake_tracker(tmp_path, store)
    tracker.start(INFO)
    store.alive = False
    for event in search_events():
        tracker.record(event)
    time.sleep(0.1)
    assert "end trial-0000" not in store.calls
    store.alive = True
    assert tracker.close("FINISHED") == []
    steps = [call for call in store.calls if call.startswith("log trial-0000 ")]
    assert steps == ["log trial-0000 40", "log trial-0000 80"]
    assert "RUNNING" not in {run.status for run in store.runs.values()}


def test_tracker_server_dead_to_the_end_is_told(tmp_path: Path) -> None:
    store = FakeStore()
    store.alive = False
    tracker = fake_tracker(tmp_path, store, close_limit_s=0.2)
    tracker.start(INFO)
    for event in search_events():
        tracker.record(event)
    begin = time.monotonic()
    (warning,) = tracker.close("FINISHED")
    assert time.monotonic() - begin < 2
    assert f"{len(search_events()) + 2} events could not be written" in warning  # and the start and the end
    assert "ConnectionError: connection refused" in warning


def test_tracker_refused_event_is_told_and_stops_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    tracker = fake_tracker(tmp_path, store)
    tracker.start(INFO)
    tracker.record({"event": "reported", "trial": 0, "time": 1})
    tracker.record(proposed(1))
    (warning,) = tracker.close("FINISHED")
    assert "refused reported of trial 0: KeyError: 'step'" in warning
    assert store.by_name("trial-0001").status == "KILLED"


def test_tracker_many_refusals_are_summed_up(tmp_path: Path) -> None:
    tracker = fake_tracker(tmp_path, FakeStore())
    tracker.start(INFO)
    for _ in range(9):
        tracker.record({"event": "reported", "trial": 0, "time": 1})
    warnings = tracker.close("FINISHED")
    assert len(warnings) == 6
    assert warnings[-1] == "... and 4 more"


def test_tracker_missing_artifact_is_told(tmp_path: Path) -> None:
    tracker = fake_tracker(tmp_path, FakeStore())
    tracker.start(INFO)
    tracker.log_artifact(tmp_path / "absent.csv")
    (warning,) = tracker.close("FINISHED")
    assert "absent.csv" in warning


def test_tracker_shows_no_password(tmp_path: Path) -> None:
    tracker = MlflowTracker("http://user:secret@127.0.0.1:1/mlflow", tmp_path)
    assert tracker.shown_uri == "http://127.0.0.1:1/mlflow"
    with pytest.raises(TrackingError) as caught:
        tracker.check()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "ConnectionError: GET http://me:p@ss@host:5000/api failed",
            "ConnectionError: GET http://host:5000/api failed",
        ),
        ('{"a": "postgresql://me:word@db/x", "b": "x@y.z"}', '{"a": "postgresql://db/x", "b": "x@y.z"}'),
        ("sqlite:////home/me@home/x.db", "sqlite:////home/me@home/x.db"),
    ],
)
def test_a_text_for_others_holds_no_password(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_check_file_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri, said in (
        (f"sqlite:///{tmp_path}/file/x.db", f"{tmp_path}/file is no folder"),
        (f"sqlite:///{tmp_path}", f"{tmp_path} is no file"),
    ):
        with pytest.raises(TrackingError, match=f"{said}; give a place that you may write to"):
            MlflowTracker(uri, tmp_path).check()
    MlflowTracker(f"sqlite:///{tmp_path}/new/x.db", tmp_path).check()


def test_check_leaves_certificates_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    MlflowTracker("https://own.example", tmp_path).check()


def test_check_default_database_needs_no_server(tmp_path: Path) -> None:
    MlflowTracker(None, tmp_path).check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "localhost:5000"])
def test_check_uri_of_another_kind_says_what_is_allowed(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"a server \(http://HOST:PORT\) or a database \(sqlite://") as caught:
        MlflowTracker(uri, tmp_path).check()
    assert uri in str(caught.value)


def test_check_closed_port_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"no server answers .*start the server \(mlflow server") as caught:
        MlflowTracker(uri, tmp_path).check()
    assert time.monotonic() - begin < 4
    assert uri in str(caught.value)


def _drip(listener: socket.socket) -> None:
    """Answer one request with headers that never end, each soon after the one before."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(20):
            connection.sendall(b"X-More: to come\r\n")
            time.sleep(0.25)


def test_check_server_that_never_gets_done_is_told_within_4_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_drip, args=[listener], daemon=True)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(TrackingError, match="no answer within 3 s"):
            MlflowTracker(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path).check()
        assert time.monotonic() - begin < 4
        thread.join()


@pytest.fixture
def web_server() -> Iterator[tuple[str, list[int]]]:
    """A web server and the status it answers /health with."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path.endswith("/health") else 500)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [200, 401, 403])
def test_check_accepts_a_server_that_answers_or_wants_a_password(
    status: int, web_server: tuple[str, list[int]], tmp_path: Path
) -> None:
    uri, answer = web_server
    answer[0] = status
    MlflowTracker(f"{uri}/prefix/", tmp_path).check()


def test_check_reaches_a_server_named_with_a_password(web_server: tuple[str, list[int]], tmp_path: Path) -> None:
    uri, _ = web_server
    MlflowTracker(uri.replace("http://", "http://user:secret@"), tmp_path).check()


def test_check_refuses_a_server_of_something_else(web_server: tuple[str, list[int]], tmp_path: Path) -> None:
    uri, answer = web_server
    answer[0] = 404
    with pytest.raises(TrackingError, match="GET /health answered 404, which MLflow does not"):
        MlflowTracker(uri, tmp_path).check()


def test_import_loads_neither_mlflow_nor_torch_nor_ray() -> None:
    code = "import sys, adept_tune.tracking; print({'mlflow', 'torch', 'ray', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


class Shown:
    """A search as a real MLflow database shows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "with space ä"
        self.folder.mkdir()
        self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.slowest_record_s = 0.0
        self.warnings = self.show(search_events(), INFO)

    def show(self, events: list[dict[str, Any]], info: SearchInfo) -> list[str]:
        tracker = MlflowTracker(None, self.folder)
        begin = time.monotonic()
        tracker.start(info)
        for event in events:
            tracker.record(event)
            self.slowest_record_s = max(self.slowest_record_s, time.monotonic() - begin)
            begin = time.monotonic()
        return tracker.close("FINISHED")

    def client(self) -> Any:
        quiet()
        from mlflow import MlflowClient

        return MlflowClient(self.uri, self.uri)

    def runs(self, search_id: str = "search-1") -> dict[str, Any]:
        client = self.client()
        experiment = client.get_experiment_by_name("adept_tune").experiment_id
        found = client.search_runs([experiment], f"tags.search_id = '{search_id}'")
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found)
        return by_name


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """One database for all tests below: making it takes seconds."""
    return Shown(tmp_path_factory.mktemp("mlflow"))


def test_mlflow_record_returns_while_the_database_is_made(shown: Shown) -> None:
    assert shown.warnings == []
    assert shown.slowest_record_s < 0.25


def test_mlflow_shows_a_tree_with_no_run_left_running(shown: Shown) -> None:
    runs = shown.runs()
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    ids = {name: run.info.run_id for name, run in runs.items()}
    children = {f"trial-{trial:04d}": ids[INFO.name] for trial in range(5)}
    grandchildren = {f"trial-0000-seed-{seed}": ids["trial-0000"] for seed in (1, 2)}
    assert parents == {INFO.name: None, **children, **grandchildren}
    assert "RUNNING" not in {run.info.status for run in runs.values()}


def test_mlflow_states_are_told_apart(shown: Shown) -> None:
    runs = shown.runs()
    ends = [runs[f"trial-{trial:04d}"] for trial in range(5)]
    assert tuple(run.data.tags["end_state"] for run in ends) == STATES
    assert [run.info.status for run in ends] == ["FINISHED", "FINISHED", "FINISHED", "FAILED", "KILLED"]


def test_mlflow_children_have_few_equal_columns(shown: Shown) -> None:
    runs = shown.runs()
    metrics = {"step", "train_loss", "validation_loss", "validation_matthews", "score"}
    assert set(runs["trial-0002"].data.metrics) == metrics
    assert set(runs["trial-0000-seed-1"].data.metrics) == metrics | {"test_matthews", "test_standard_error"}
    assert runs["trial-0002"].data.params["prompt_length"] == "62"
    assert runs["trial-0002"].data.metrics["score"] == 0.5


def test_mlflow_times_are_those_of_the_events(shown: Shown) -> None:
    run = shown.runs()["trial-0002"]
    assert (run.info.start_time, run.info.end_time) == (102_000, 102_000)


def test_mlflow_search_run_tells_the_result(shown: Shown) -> None:
    data = shown.runs()[INFO.name].data
    assert data.metrics["winner_test_mean"] == 0.55
    assert data.metrics["baseline_validation_mean"] == 0.4
    assert data.tags["winner_trial"] == "0"
    assert data.tags["winner_prompt_length"] == "60"
    assert data.params == {
        "task": "cola",
        "method": "adept",
        "metric": "matthews",
        "model": "t5-small",
        "trials": "5",
        "max_steps": "80",
    }
    assert "torch " in data.tags["versions"]
    assert data.tags["mlflow.note.content"].startswith("Winner: trial 0, test matthews 0.550 ± 0.007, ")


def test_mlflow_artifacts_lie_in_the_experiment_folder(shown: Shown) -> None:
    runs = shown.runs()
    artifacts = shown.folder / "mlartifacts"
    error = artifacts / runs["trial-0003"].info.run_id / "artifacts" / "error.txt"
    space = artifacts / runs[INFO.name].info.run_id / "artifacts" / "space.yaml"
    assert (error.read_text(), space.read_text()) == (TRACEBACK, "budget: 76800\n")


def test_mlflow_recording_all_again_changes_nothing(shown: Shown) -> None:
    def everything() -> dict[str, Any]:
        client = shown.client()
        return {
            name: (
                run.info.run_id,
                run.info.status,
                run.data.params,
                {tag: value for tag, value in run.data.tags.items() if tag not in ("git_commit", GIT_TAG)},
                {metric: len(client.get_metric_history(run.info.run_id, metric)) for metric in run.data.metrics},
            )
            for name, run in shown.runs().items()
        }

    before = everything()
    assert shown.show(search_events(), INFO) == []
    assert everything() == before


GIT_TAG = "mlflow.source.git.commit"  # others may edit this tree while its tests run


def test_mlflow_stores_nan_and_no_infinity(shown: Shown) -> None:
    info = SearchInfo("search-nan", "n", "cola", "adept", "recall@5")
    report = {
        "event": "reported",
        "trial": 0,
        "time": 1,
        "step": 40,
        "train_loss": math.inf,
        "score": math.nan,
    }
    assert shown.show([proposed(0), report], info) == []
    metrics = shown.runs("search-nan")["trial-0000"].data.metrics
    assert math.isnan(metrics["train_loss"])
    assert math.isnan(metrics["validation_recall_5"])
    assert metrics["step"] == 40


def test_mlflow_experiment_in_the_trash_is_taken_out(shown: Shown) -> None:
    client = shown.client()
    there = client.get_experiment_by_name("adept_tune").experiment_id
    client.delete_experiment(there)
    open_store(shown.uri, "adept_tune", None)
    assert client.get_experiment(there).lifecycle_stage == "active"
    assert shown.runs()


def test_mlflow_database_writes_ahead(shown: Shown) -> None:
    import sqlite3

    connection = sqlite3.connect(shown.folder / "mlflow.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_mlflow_says_nothing(shown: Shown, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from adept_tune.tracking import *\n"
        f"t = MlflowTracker({shown.uri!r}, Path({str(tmp_path)!r}))\n"
        "t.start(SearchInfo('quiet', 'n', 't', 'm', 'a'))\n"
        "t.record({'event': 'proposed', 'trial': 0, 'params': {}})\n"
        f"t.log_adapter(Path({str(tmp_path)!r}), ['sentence'])\n"
        "assert t.close('FINISHED') == []"
    )
    for name in ("adapter.json", "adapter.safetensors"):
        (tmp_path / name).write_text("{}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def _serve(uri: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(
        [*command, "--port", str(port), "--backend-store-uri", uri],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _await_server(tracker: MlflowTracker) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return tracker.check()
        except TrackingError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)


def _kill(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, 9)
    server.wait()


@pytest.mark.slow
def test_mlflow_server_that_dies_and_returns_gets_everything(shown: Shown, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    info = SearchInfo("search-server", "n", "cola", "adept", "matthews", artifacts={"a.txt": "a"})
    events = search_events()
    tracker = MlflowTracker(f"http://127.0.0.1:{port}", tmp_path, "served")
    server = _serve(shown.uri, port, tmp_path)
    try:
        _await_server(tracker)
        tracker.start(info)
        for event in events[:6]:
            tracker.record(event)
        time.sleep(2)
    finally:
        _kill(server)
    for event in events[6:]:
        tracker.record(event)
    time.sleep(1)
    server = _serve(shown.uri, port, tmp_path)
    try:
        _await_server(tracker)
        assert tracker.close("FINISHED") == []
    finally:
        _kill(server)
    client = shown.client()
    found = client.search_runs([client.get_experiment_by_name("served").experiment_id])
    assert len(found) == 8
    assert "RUNNING" not in {run.info.status for run in found}
