"""A trial as Ray Tune runs it: a small process that holds its share of a device and asks that device's host to train.

It imports no torch: about 110 MB and 1.5 s of CPU once a slot, since processes are reused.
"""

from typing import Any

import ray
from ray import tune

from adept_tune.tuning.broker import NAMESPACE


def run_trial(config: dict[str, Any]) -> None:
    """Train one job to its end, reporting on the way.

    Args:
        config: ``job`` (fields of a `Job`) and ``broker`` (name of the search's broker).
    """
    job, name = config["job"], config["job"]["name"]
    broker = ray.get_actor(config["broker"], namespace=NAMESPACE)
    seat = ray.get(broker.admit.remote(name, *_device()))
    evaluations = set(job["evaluations"])
    try:
        ray.get(seat.host.join.remote(name, seat.incarnation, job["config"], seat.blob))
        for step in job["reports"]:
            if step <= seat.step:
                continue
            report = ray.get(seat.host.train_to.remote(name, seat.incarnation, step, step in evaluations))
            tune.report(report | {"host": seat.host_name, "incarnation": seat.incarnation})
            if report["diverged"]:
                return
        ray.get(seat.host.leave.remote(name, seat.incarnation))  # raises where the last report was lost with its host
    finally:
        seat.host.leave.remote(name, seat.incarnation)


def _device() -> tuple[str, str | None]:
    """Node and GPU that Ray has given this process."""
    gpus = ray.get_gpu_ids()
    return ray.get_runtime_context().get_node_id(), str(gpus[0]) if gpus else None


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]  # Ray is untyped here
def ask_host(broker_name: str, method: str, *arguments: Any) -> Any:
    """Hold a share of a device, as a trial does, while its host does something else than train.

    Args:
        broker_name: Name of the search's broker.
        method: Of the host.
        arguments: For that method.
    """
    broker = ray.get_actor(broker_name, namespace=NAMESPACE)
    _, host = ray.get(broker.host.remote(*_device()))
    return ray.get(getattr(host, method).remote(*arguments))
