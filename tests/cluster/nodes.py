"""A Ray cluster of several nodes on this machine, in a process of its own.

It does what the lines of its input say and answers each with one line of JSON:

    add NAME CPUS GPUS      the node's id
    remove NAME             kills the node as a power cut would
    hosts                   names of the hosts that live
    connect                 joins, so that `hosts` can be answered

and ends, with all its nodes, where its input does.
"""

import json
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

from adept_tune.tuning.broker import NAMESPACE


class Nodes:
    """The cluster; its first node is the head."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._nodes: dict[str, Any] = {}

    def add(self, name: str, num_cpus: str, num_gpus: str) -> str:
        """Start a node."""
        node = self._cluster.add_node(num_cpus=int(num_cpus), num_gpus=int(num_gpus), include_dashboard=False)
        self._nodes[name] = node
        return str(node.node_id)

    def remove(self, name: str) -> None:
        """Kill a node's processes."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def connect(self) -> str:
        """Join the cluster; gives its address."""
        ray.init(self._cluster.address, namespace=NAMESPACE, log_to_driver=False)
        return str(self._cluster.address)

    def hosts(self) -> list[str]:
        """Names of the hosts that live."""
        return [name for name in ray.util.list_named_actors() if ":host:" in name]

    def end(self) -> None:
        """Stop all nodes."""
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    """Answer until the input ends."""
    nodes = Nodes()
    try:
        for line in sys.stdin:
            command, *arguments = line.split()
            print("answer", json.dumps(getattr(nodes, command)(*arguments)), flush=True)
    finally:
        nodes.end()


if __name__ == "__main__":
    main()
