"""What goes wrong while a search runs: processes die, disks fill, files are damaged, servers go away."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adept_tune.tuning.spec import STATES
from tests.support.search import save_answering_t5, write_rows
from tests.support.sessions import Session, mlflow_states, said_twice, scores

pytestmark = pytest.mark.slow

SPACE = """
method: adept
parameters:
  prompt_length: {low: 2, high: 12}
  ffn_width: {low: 1, high: 6}
  prompt_lr: {low: 0.03, high: 0.3, log: true}
"""
TRIALS, FINALISTS, SEEDS = 3, 1, 2
RUNS = {"search FINISHED": 1, "trial FINISHED": TRIALS, "retrain FINISHED": FINALISTS * SEEDS}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows and a space."""
    folder = tmp_path_factory.mktemp("places")
    save_answering_t5(folder / "model")
    write_rows(folder / "data", num_train=300, num_validation=40)
    (folder / "own.yaml").write_text(SPACE)
    return folder


def session(places: Path, folder: Path, *more: str, steps: int = 400, slots: int = 3) -> Session:
    """A search of three trials, long enough to be disturbed."""
    arguments = [
        *("--task", "sst2", "--model", str(places / "model"), "--data-dir", str(places / "data")),
        *("--space", str(places / "own.yaml"), "--trials", str(TRIALS), "--max-steps", str(steps)),
        *("--batch-size", "4", "--device", "cpu", "--scheduler", "none", "--sampler", "random"),
        *("--finalists", str(FINALISTS), "--seeds", str(SEEDS), "--trials-per-gpu", str(slots)),
        *("--set", "num_threads=1", "--precision", "fp32"),
    ]
    return Session([*arguments, *more], folder, places / "cache")


@pytest.fixture(scope="module")
def undisturbed(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The same search, left alone."""
    done = session(places, tmp_path_factory.mktemp("undisturbed") / "experiment")
    assert done.end() == 0, done.output
    return done


def check_whole(found: Session, undisturbed: Session | None) -> None:
    """Every trial and retraining is there once, with the scores it has when nothing happens."""
    events = [event for event in found.events() if event.get("state") != "INTERRUPTED"]
    assert said_twice(events) == []
    ended = {event["trial"]: event["state"] for event in events if event["event"] == "ended"}
    assert ended == dict.fromkeys(range(TRIALS), "FINISHED")
    assert len(found.events("winner")) == 1
    assert mlflow_states(found.folder / "mlflow.db") == RUNS
    if undisturbed is None:
        return
    here, there = scores(events), scores(undisturbed.events())
    assert len(here) == len(there) == TRIALS + FINALISTS * SEEDS
    assert {str(steps) for steps in map(_steps, here.values())} == {str(steps) for steps in map(_steps, there.values())}
    for name in here.keys() & there.keys():  # where scores are so near, another trial may be the finalist
        for (_, score), (_, other) in zip(here[name], there[name], strict=True):
            assert score == pytest.approx(other, abs=0.11)  # 4 of 40 rows: float32 in other company


def _steps(reports: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in reports]


def test_lost_hosts_and_trial_processes_cost_a_report_interval_and_nothing_else(places, tmp_path, undisturbed):
    found = session(places, tmp_path / "experiment")
    found.until(lambda: len(found.events("reported")) > 5)
    found.kill("ray::Host")
    before = len(found.events("reported"))
    found.until(lambda: len(found.events("reported")) > before + 5)
    found.kill("ray::ImplicitFunc")  # all trials' processes at once
    found.until(lambda: len(found.events("retrain_reported")) > 3)
    found.kill("ray::Host")
    assert found.end() == 0, found.output
    check_whole(found, undisturbed)
    troubles = found.events("trouble", "retrain_trouble")
    assert len(troubles) >= 2
    causes = {event["what"].split(";")[0] for event in troubles}
    assert causes == {"its host died", "its process died"}
    assert all("worker process has died" in event["error"] for event in troubles)
    assert any("in run_trial" in event["error"] for event in troubles)  # the worker's traceback
    assert "its host died; started again (1 of 3 times)" in found.output
    first = {event["trial"]: event for event in found.events("started")}
    assert len(first) == TRIALS


def test_a_trial_that_loses_its_process_too_often_fails_with_the_cause(places, tmp_path):
    found = session(places, tmp_path / "experiment", "--set", "max_failures=0", steps=4000)
    found.until(lambda: len(found.events("reported")) > 3)
    found.kill("ray::Host")
    assert found.end() == 3, found.output
    ended = found.events("ended")
    assert {event["state"] for event in ended} == {"FAILED"}
    assert {event["reason"] for event in ended} == {"its host died"}
    assert all("in run_trial" in event["error"] for event in ended)
    assert "No trial came to an evaluation" in found.output
    assert mlflow_states(found.folder / "mlflow.db") == {"search FAILED": 1, "trial FAILED": TRIALS}


def test_a_host_lost_in_an_evaluation_repeats_that_and_no_report(places, tmp_path):
    write_rows(places / "data", num_train=300, num_validation=30_000, task="cola")  # evaluations of seconds
    found = session(places, tmp_path / "experiment", "--task", "cola", steps=60)
    found.until(lambda: [event for event in found.events("reported") if event["step"] == 59])
    time.sleep(0.4)
    assert not [event for event in found.events("reported") if event["step"] == 60]
    found.kill("ray::Host")
    assert found.end() == 0, found.output
    check_whole(found, None)
    assert {event["what"].split(";")[0] for event in found.events("trouble")} == {"its host died"}
    for trial in range(TRIALS):
        steps = [event["step"] for event in found.events("reported") if event["trial"] == trial]
        assert steps == list(range(1, 61))


def test_a_lost_broker_stops_the_search_and_fails_no_trial(places, tmp_path, undisturbed):
    found = session(places, tmp_path / "experiment")
    found.until(lambda: len(found.events("reported")) > 5)
    found.kill("ray::Broker")
    assert found.end() == 1, found.output
    assert "the search's broker has died" in found.output
    assert "Traceback" not in found.output
    assert {event["state"] for event in found.events("ended")} <= {"INTERRUPTED"}
    again = session(places, found.folder, "--resume", str(found.folder))
    assert again.end() == 0, again.output
    check_whole(again, undisturbed)


def test_ctrl_c_saves_what_was_on_its_way_and_the_next_session_goes_on_from_there(places, tmp_path):
    found = session(places, tmp_path / "experiment", steps=4000)
    found.until(lambda: len(found.events("reported")) > 8)
    asked = time.monotonic()
    os.kill(found.process.pid, signal.SIGINT)
    assert found.end() == 130, found.output
    assert time.monotonic() - asked < 20
    assert f"--resume {found.folder}" in found.output
    saved = {event["trial"]: event["step"] for event in found.events("saved")}
    reported = {event["trial"]: event["step"] for event in found.events("reported")}
    assert saved
    assert all(step >= reported.get(trial, 0) for trial, step in saved.items())
    assert {event["state"] for event in found.events("ended")} == {"INTERRUPTED"}
    assert "trial RUNNING" not in mlflow_states(found.folder / "mlflow.db")
    again = session(places, found.folder, "--resume", str(found.folder), steps=4000)
    assert again.end() == 0, again.output
    check_whole(again, None)


def test_a_damaged_state_is_refused_by_name_and_the_one_before_is_used(places, tmp_path, undisturbed):
    found = session(places, tmp_path / "experiment")
    found.until(lambda: min(len([e for e in found.events("reported") if e["trial"] == t]) for t in range(3)) > 4)
    os.killpg(found.process.pid, signal.SIGKILL)
    found.process.wait()
    damaged = []
    for trial in range(TRIALS):
        newest = max((found.folder / STATES / f"trial-{trial:04d}").glob("*.safetensors"))
        blob = newest.read_bytes()
        if trial == 0:
            newest.write_bytes(blob[: len(blob) // 2])
        elif trial == 1:
            newest.write_bytes(blob[:-8] + b"tampered")
        else:
            for path in newest.parent.iterdir():
                path.write_bytes(b"nonsense")
        damaged.append(newest)
    again = session(places, found.folder, "--resume", str(found.folder))
    assert again.end() == 0, again.output
    for newest in damaged:
        assert f"went on from an older state, because {newest}" in again.output
    check_whole(again, undisturbed)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size; the test is skipped where we may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_search_which_goes_on_once_there_is_room(places, tmp_path, undisturbed):
    with small_disk(tmp_path / "disk", "48k") as disk:
        found = session(places, tmp_path / "experiment", "--storage", str(disk))
        assert found.end() == 1, found.output
        assert "cannot be written" in found.output
        assert "No space left on device" in found.output
        assert "--resume" in found.output
        assert "Traceback" not in found.output
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        again = session(places, found.folder, "--storage", str(disk), "--resume", str(found.folder))
        assert again.end() == 0, again.output
        check_whole(again, undisturbed)


def test_a_tracking_server_that_goes_away_for_twenty_seconds_misses_nothing(places, tmp_path, undisturbed):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = _server(tmp_path, port)
    try:
        found = session(places, tmp_path / "experiment", "--tracking-uri", f"http://127.0.0.1:{port}", steps=1600)
        found.until(lambda: len(found.events("reported")) > 10)
        _stop(server)
        before = len(found.events("reported"))
        time.sleep(20)
        assert found.process.poll() is not None or len(found.events("reported")) > before  # training went on
        server = _server(tmp_path, port)
        assert found.end() == 0, found.output
        assert "warning" not in found.output
        assert mlflow_states(tmp_path / "server.db") == RUNS
    finally:
        _stop(server)


def _server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "art")),
    ]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return process
        except OSError:
            time.sleep(0.3)
    _stop(process)
    raise AssertionError((folder / "server.log").read_text())


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
