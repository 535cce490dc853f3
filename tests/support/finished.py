"""The demonstration, searched by the command that a newcomer types."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEARCH_LIMIT_S = 900
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """A finished search.

    Attributes:
        folder: The experiment.
        output: What the command said.
    """

    folder: Path
    output: str

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of some kinds, as the journal has them."""
        events = [json.loads(line) for line in (self.folder / "journal.jsonl").read_text().splitlines()]
        return [event for event in events if event["event"] in kinds]

    @property
    def rows(self) -> Path:
        """Folder of the demonstration's rows."""
        return ROOT / "adept_tune" / "demo" / "data"

    @property
    def adapter(self) -> dict[str, Any]:
        """The exported adapter's description."""
        return json.loads((self.folder / "adapter" / "adapter.json").read_text())


def search_demonstration(place: Path) -> Finished:
    """Run the search in a folder of its own."""
    folder = place / "experiment"
    command = [sys.executable, "-m", "adept_tune.search", "--task", "demo", "--experiment", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=SEARCH_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(folder, done.stdout + done.stderr)
