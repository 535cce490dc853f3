import pytest


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a network, even if the machine has one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
