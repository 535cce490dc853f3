"""A trial as Ray Tune runs it: a small process that holds its share of a device and asks that device's host to train.

It imports no torch: about 110 MB and 1.5 s of CPU once a slot, since processes are reused.
"""

from typing import Any

import ray
from ray import tune

from adept_tune.errors import MethodError, StateError
from adept_tune.tuning.broker import NAMESPACE, Seat


def run_trial(config: dict[str, Any]) -> None:
    """Train one job to its end, reporting on the way.

    What its journal has already is not reported again, but where the newest state was lost it is trained again, with
    a pause at each report, so that the mean loss of the next one starts where it would have.

    Args:
        config: ``job`` (fields of a `Job`) and ``broker`` (name of the search's broker).
    """
    job, name = config["job"], config["job"]["name"]
    seat, refused = _seated(ray.get_actor(config["broker"], namespace=NAMESPACE), job)
    evaluations = set(job["evaluations"])
    told = {"host": seat.host_name, "incarnation": seat.incarnation}
    try:
        steps = [step for step in job["reports"] if step > min(seat.step, seat.reported)]
        for step, later in zip(steps, [*steps[1:], None], strict=True):
            new = step > seat.reported
            evaluate = new and step in evaluations
            # Rungs decide where it is evaluated; elsewhere its host need not wait for us.
            then = (later, later in evaluations) if new and not evaluate and later is not None else None
            report = ray.get(seat.host.train_to.remote(name, seat.incarnation, step, evaluate, new, then))
            if new:
                tune.report(report | told | {"refused": refused})
                refused = []
                if report["diverged"]:
                    return
        ray.get(seat.host.leave.remote(name, seat.incarnation))  # raises where the last report was lost with its host
    finally:
        seat.host.leave.remote(name, seat.incarnation)


def _seated(broker: Any, job: dict[str, Any]) -> tuple[Seat, list[str]]:
    """A seat on this process's device, with the newest state that can be read; what is wrong with newer ones."""
    name, refused = job["name"], list[str]()
    while True:
        seat: Seat = ray.get(broker.admit.remote(name, *_device()))
        try:
            ray.get(seat.host.join.remote(name, seat.incarnation, job["config"], seat.blob))
            return seat, refused
        except (MethodError, StateError) as error:
            if seat.blob is None:
                raise
            place = ray.get(broker.refuse.remote(name, seat.step))
            refused.append(f"{place}: {_first_cause(error)}")


def _first_cause(error: BaseException) -> str:
    """What was raised in the host, in one line."""
    cause = getattr(error, "cause", None) or error
    return " ".join(str(cause).split())


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
