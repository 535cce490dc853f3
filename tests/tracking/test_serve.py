"""The MLflow server of a cluster's head: what it is started with, and that it is not started twice."""

import os
import sqlite3

import pytest

from adept_tune.tracking import serve


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """What the process would have become, as (command, environment); home is a folder of our own."""
    found: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    monkeypatch.setattr(serve, "answers", lambda: False)
    monkeypatch.setattr(os, "execve", lambda path, command, environment: found.append((command, environment)))
    return found


def test_server_is_one_worker_on_loopback_without_jobs_over_a_write_ahead_database(executed, tmp_path):
    serve.main()
    ((command, environment),) = executed
    assert command[1:] == ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1"]
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    connection = sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_one_variable_moves_the_runs_to_another_database(executed, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://mlflow@db/mlflow")
    serve.main()
    assert executed[0][1]["MLFLOW_BACKEND_STORE_URI"] == "postgresql://mlflow@db/mlflow"
    assert not (tmp_path / "mlflow").exists()


def test_a_server_that_answers_is_left_alone(executed, monkeypatch):
    monkeypatch.setattr(serve, "answers", lambda: True)
    serve.main()
    assert executed == []


def test_nothing_answers_at_a_port_that_nobody_has(monkeypatch):
    monkeypatch.setattr(serve, "PORT", 1)
    assert not serve.answers()
