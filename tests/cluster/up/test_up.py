"""`ray up cluster.local.yaml` onto three hosts: the search is submitted, a host dies, the results are on the head."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adept_tune.tuning.journal import Journal
from adept_tune.tuning.spec import JOURNAL
from tests.cluster.up.hosts import Hosts, missing
from tests.support.sessions import ROOT, said_twice

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is nothing to skip for"),
]

TRIALS, STEPS = 6, 300
SEARCH = (
    f"python -m adept_tune.search --task demo --trials {TRIALS} --max-steps {STEPS} --scheduler none --sampler random "
    "--finalists 1 --seeds 1 --trials-per-gpu 2 --model /mnt/model --experiment ~/found"
)
LIMIT_S = 480.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three hosts and a laptop."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))  # a socket's path has room for 107 characters
    made = Hosts(folder, "head", "one", "two")
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


class Launcher:
    """Ray's command line on the laptop, with `cluster.local.yaml` changed as its comments say.

    What it would install is linked, since no way leads to a registry.
    """

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.local.yaml").read_text())
        head, *workers = (hosts.addresses[name] for name in ("head", "one", "two"))
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        config["file_mounts"]["~/adept_tune"] = str(ROOT)
        setup = config["setup_commands"]
        installing = [line for line in setup if "adept_tune_venv/bin/pip" in line]
        assert len(installing) == 2
        config["setup_commands"] = [f"ln -sfn {sys.prefix} ~/adept_tune_venv", *setup[2:]]
        self.file = hosts.folder / "cluster.local.yaml"
        self.file.write_text(yaml.safe_dump(config))

    def ray(self, *arguments: str) -> str:
        """Run a command of Ray's to its end; its output."""
        done = subprocess.run(self._line(*arguments), capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, f"ray {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Run a command of Ray's in the background."""
        with log.open("wb") as file:
            return subprocess.Popen(self._line(*arguments), stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def _line(self, *arguments: str) -> list[str]:
        settings = {"RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        return self._hosts.laptop(f"{sys.prefix}/bin/ray", *arguments, **settings)


def until(reached: Callable[[], Any], told: Callable[[], str]) -> Any:
    """Wait for something; give what it gave."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := reached()):
        assert time.monotonic() < deadline, f"in vain:\n{told()}"
        time.sleep(0.1)
    return found


def test_a_search_on_three_hosts_of_which_one_dies(hosts):
    launcher, times = Launcher(hosts), {"begun": time.time()}
    launcher.ray("get-auth-token", "--generate")
    launcher.ray("up", "-y", "--no-config-cache", str(launcher.file))
    times["up"] = time.time()
    until(lambda: " 3 local.cluster.node" in launcher.ray("exec", str(launcher.file), "ray status"), lambda: "nodes")
    times["all joined"] = time.time()

    shutil.copytree(ROOT / "adept_tune" / "demo" / "model", hosts.own("head") / "model")  # only the head has it
    log, folder = hosts.folder / "search.log", hosts.home("head") / "found"
    search = launcher.start(log, "exec", str(launcher.file), SEARCH)

    def events(kind: str) -> list[dict[str, Any]]:
        found = Journal(folder / JOURNAL).read() if folder.is_dir() else []
        return [event for event in found if event["event"] == kind]

    until(lambda: len({event["trial"] for event in events("reported")}) >= 6, log.read_text)
    times["first report"] = events("reported")[0]["time"]
    hosts.kill("two")
    times["killed"] = time.time()
    until(lambda: events("trouble") or search.poll() is not None, log.read_text)
    times["known"] = time.time()
    assert search.wait(LIMIT_S) == 0, log.read_text()

    assert said_twice(list(Journal(folder / JOURNAL).read())) == []
    assert {event["trial"]: event["state"] for event in events("ended")} == dict.fromkeys(range(TRIALS), "FINISHED")
    assert {event["what"].split(";")[0] for event in events("trouble")} == {"its node was lost"}
    assert list((hosts.home("one") / ".cache" / "adept_tune" / "models").iterdir())
    assert (folder / "adapter" / "adapter.safetensors").is_file()
    runs = launcher.ray("exec", str(launcher.file), COUNT_RUNS)
    retrained = {(event["trial"], event["seed"]) for event in events("retrain_ended")}
    assert f"runs {1 + TRIALS + len(retrained)}" in runs

    launcher.ray("down", "-y", str(launcher.file))
    until(lambda: not [line for line in hosts.processes("head") if "raylet" in line], lambda: "the head's raylet")
    print(*(f"{what} after {when - times['begun']:.0f} s" for what, when in times.items()), sep="\n")


COUNT_RUNS = (
    'python -c "from mlflow import MlflowClient; client = MlflowClient(); '
    "print('runs', len(client.search_runs([e.experiment_id for e in client.search_experiments()])))\""
)
