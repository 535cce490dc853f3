"""Ray's own autoscaler and `ray down` on `cluster.yaml` and a mock of AWS, in a process of its own.

The head is a Ray of this machine that the mock's head machine stands for. Eight trials wait for their shares of a GPU;
what machines there are then, and after `ray down`, is told as a line of JSON.

    python -m tests.cluster.launched_by_trials HOME
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(sys.argv[1])
os.environ |= {
    **{"HOME": str(HOME), "RAY_TMPDIR": str(HOME), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    "RAY_enable_autoscaler_v2": "1",
}

import ray  # noqa: E402
import yaml  # noqa: E402
from ray._raylet import GcsClient  # noqa: E402
from ray.autoscaler._private.aws import config as aws_config  # noqa: E402
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: E402
from ray.autoscaler._private.command_runner import SSHCommandRunner  # noqa: E402
from ray.autoscaler._private.commands import _bootstrap_config, teardown_cluster  # noqa: E402
from ray.autoscaler.v2.autoscaler import Autoscaler  # noqa: E402
from ray.autoscaler.v2.instance_manager.config import FileConfigReader  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from adept_tune.tuning.cluster import share_of  # noqa: E402
from tests.cluster.mocked_aws import KEYS, furnish, mocked_aws  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TRIALS, LIMIT_S = 8, 60.0


def machines(ec2: Any) -> list[list[str]]:
    """Kind, market and state of every machine."""
    found = [machine for each in ec2.describe_instances()["Reservations"] for machine in each["Instances"]]
    return [[m["InstanceType"], m.get("InstanceLifecycle", "on demand"), m["State"]["Name"]] for m in found]


def main() -> None:
    """Launch, end, tell."""
    furnish(HOME)
    aws_config.time = type("Hurried", (), {"sleep": staticmethod(lambda seconds: None)})  # AWS is slow to know a role
    SSHCommandRunner.run = lambda *arguments, **options: ""  # no machine is behind the mock's addresses
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    os.chdir(ROOT)
    os.environ |= KEYS
    with mocked_aws(config) as ec2:
        given, whole = HOME / "given.yaml", HOME / "whole.yaml"
        given.write_text(yaml.safe_dump(config))
        resolved = _bootstrap_config(config, no_config_cache=True)
        del resolved["head_node"]  # which Ray adds for itself
        resolved["provider"]["disable_node_updaters"] = True
        whole.write_text(yaml.safe_dump(resolved))
        tags = {"ray-node-name": "head", "ray-node-type": "head", "ray-user-node-type": "head"}
        head = resolved["available_node_types"]["head"]["node_config"]
        AWSNodeProvider(resolved["provider"], resolved["cluster_name"]).create_node(head, tags, 1)
        (reservation,) = ec2.describe_instances()["Reservations"]
        identity = {"RAY_CLOUD_INSTANCE_ID": reservation["Instances"][0]["InstanceId"], "RAY_NODE_TYPE_NAME": "head"}
        os.environ |= identity
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        ray.init(cluster.address, log_to_driver=False)
        share = share_of("cuda", TRIALS, launchable=4)
        waiting = [ray.remote(**share.options(), max_retries=0)(lambda: None).remote() for _ in range(TRIALS)]
        autoscaler = Autoscaler("session", FileConfigReader(str(whole), True), GcsClient(address=cluster.gcs_address))
        deadline = time.monotonic() + LIMIT_S
        while len(machines(ec2)) < 2 and time.monotonic() < deadline:
            autoscaler.update_autoscaling_state()
            time.sleep(0.5)
        for _ in range(4):  # it does not go on launching
            autoscaler.update_autoscaling_state()
            time.sleep(0.5)
        launched = machines(ec2)
        teardown_cluster(str(given), True, False, None, False)
        print("answer", json.dumps({"launched": launched, "down": machines(ec2)}), flush=True)
        del waiting
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
