"""What produced a result: versions and commit. Imports none of the packages it names."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import adept_tune

PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "optuna",
    "mlflow",
    "peft",
    "datasets",
    "numpy",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with; what is not installed is left out."""
    found = {"python": platform.python_version(), "adept_tune": adept_tune.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit a folder is at, with "-dirty" when files in that folder differ from it.

    Changes elsewhere in the repository do not count: a search's own output would make every search dirty.

    Args:
        folder: Any folder.

    Returns:
        The full hash; None where there is no git, no commit, or the repository ignores the folder (an
        installed package inside somebody's virtual environment is not at the commit of their project).
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit or _git(folder, "check-ignore", "--quiet", ".") is not None:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None when it fails."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
