"""The paper's tables, imported as their commands import one another."""

from pathlib import Path

import pytest

PAPER = Path(__file__).resolve().parents[2] / "experiments" / "paper"


@pytest.fixture(autouse=True)
def _paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAPER))
