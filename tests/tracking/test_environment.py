"""Versions and commit."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from adept_tune.tracking.environment import git_commit, versions


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a package, and an ignored environment."""
    git(tmp_path, "init", "--quiet")
    for folder in ("package", "venv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text("venv/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_git_commit_of_a_clean_folder_is_the_head(repository: Path) -> None:
    assert git_commit(repository / "package") == git(repository, "rev-parse", "HEAD")


def test_git_commit_marks_a_changed_folder(repository: Path) -> None:
    (repository / "package" / "new.py").write_text("2\n")
    assert git_commit(repository / "package") == git(repository, "rev-parse", "HEAD") + "-dirty"


def test_git_commit_ignores_changes_elsewhere(repository: Path) -> None:
    (repository / "results.txt").write_text("2\n")
    assert git_commit(repository / "package") == git(repository, "rev-parse", "HEAD")


def test_git_commit_of_an_installed_package_is_not_that_of_the_users_project(repository: Path) -> None:
    assert git_commit(repository / "venv") is None


def test_git_commit_outside_a_repository_is_none(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None


def test_git_commit_without_git_is_none(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit(repository / "package") is None


def test_versions_names_what_is_installed() -> None:
    found = versions()
    assert found["mlflow"] == metadata.version("mlflow")
    assert {"python", "adept_tune", "torch", "ray"} <= set(found)
