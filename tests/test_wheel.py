"""An installed wheel has what a checkout has."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIND = "from adept_tune.tuning.space import find_space; print(find_space('adept'))"


@pytest.mark.slow
def test_search_spaces_reach_an_installed_wheel(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    spaces = {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert {path.name for path in (tmp_path / "site/adept_tune/search_spaces").iterdir()} == spaces
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run(
        [sys.executable, "-c", FIND],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert Path(found.stdout.strip()) == tmp_path / "site/adept_tune/search_spaces/adept.yaml"
