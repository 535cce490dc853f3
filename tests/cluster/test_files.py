"""The cluster files against Ray's schema, and `cluster.yaml` against a mock of AWS."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.mocked_aws import KEYS, furnish, mocked_aws

ROOT = Path(__file__).resolve().parents[2]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "cluster.local.yaml"


def read(path: Path) -> dict[str, Any]:
    """A cluster file."""
    return yaml.safe_load(path.read_text())


def commands(config: dict[str, Any]) -> str:
    """All that is run on the machines."""
    return "\n".join(line for key, lines in config.items() if key.endswith("_commands") for line in lines)


@pytest.fixture
def resolved(monkeypatch, tmp_path):
    """`cluster.yaml` as Ray completes it against the mock, which has an image of its own; AWS is gone afterwards."""
    monkeypatch.chdir(ROOT)
    for name, value in {**KEYS, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(aws_config.time, "sleep", lambda seconds: None)  # AWS takes time to know of a new role
    furnish(tmp_path)
    config = read(AWS)
    with mocked_aws(config):
        yield _bootstrap_config(config, no_config_cache=True)


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_file_fits_rays_schema(path):
    config = prepare_config(read(path))
    for kind in config["available_node_types"].values():
        kind.setdefault("resources", {})  # of AWS's machines Ray looks them up
    validate_config(config)


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_everything_on_the_machines_is_said_in_the_file(path):
    given, completed = read(path), prepare_config(read(path))
    assert set(commands(completed).splitlines()) == set(commands(given).splitlines())
    assert "-c ~/adept_tune/constraints.txt" in commands(given)
    assert "RAY_AUTH_MODE=token" in commands(given)
    assert "RAY_USAGE_STATS_ENABLED=0" in commands(given)
    assert "--dashboard-host=127.0.0.1" in commands(given)
    assert given["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_both_files_run_the_same_commands():
    only_aws = ("sudo ", "ADEPT_TUNE_MAX_GPUS")
    aws = [line for line in commands(read(AWS)).splitlines() if not line.startswith(only_aws[0])]
    local = commands(read(LOCAL)).splitlines()
    assert [re.sub(rf"{only_aws[1]}=\d+ ", "", line) for line in aws] == local


def test_aws_launches_head_and_spot_machines_that_have_the_gpus_promised(resolved):
    kinds = resolved["available_node_types"]
    promised = int(re.search(r"ADEPT_TUNE_MAX_GPUS=(\d+)", commands(resolved))[1])
    assert "GPU" not in kinds["head"]["resources"]
    assert promised == resolved["max_workers"] * kinds["gpu"]["resources"]["GPU"]
    assert kinds["gpu"]["max_workers"] == resolved["max_workers"]
    assert kinds["gpu"]["min_workers"] == 0

    provider = AWSNodeProvider(resolved["provider"], resolved["cluster_name"])
    ec2 = boto3.client("ec2", region_name=resolved["provider"]["region"])
    for kind, node in kinds.items():
        provider.create_node(node["node_config"], {"ray-node-name": kind}, 1)
    found = {
        machine["InstanceType"]: machine
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    }
    head, gpu = (found[kinds[kind]["node_config"]["InstanceType"]] for kind in ("head", "gpu"))
    assert gpu["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in head

    provider.terminate_nodes([machine["InstanceId"] for machine in found.values()])
    states = [
        machine["State"]["Name"]
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    ]
    assert set(states) <= {"shutting-down", "terminated"}


def test_aws_opens_nothing_but_ssh_to_the_world(resolved):
    ec2 = boto3.client("ec2", region_name=resolved["provider"]["region"])
    groups = {
        group for kind in resolved["available_node_types"].values() for group in kind["node_config"]["SecurityGroupIds"]
    }
    rules = [
        rule
        for group in ec2.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
        for rule in group["IpPermissions"]
    ]
    assert rules
    assert {rule["FromPort"] for rule in rules if rule["IpRanges"]} == {22}


@pytest.mark.slow
def test_waiting_trials_make_ray_launch_one_spot_machine_and_ray_down_ends_all():
    kinds = read(AWS)["available_node_types"]
    head, gpu = (kinds[kind]["node_config"]["InstanceType"] for kind in ("head", "gpu"))
    home = tempfile.mkdtemp(prefix="aws-", dir="/tmp")  # a socket's path has room for 107 characters
    command = [sys.executable, "-m", "tests.cluster.launched_by_trials", home]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(said[0].removeprefix("answer "))
    assert sorted(answer["launched"]) == sorted([[head, "on demand", "running"], [gpu, "spot", "running"]])
    assert sorted(answer["down"]) == sorted([[head, "on demand", "terminated"], [gpu, "spot", "terminated"]])
