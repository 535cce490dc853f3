"""Start or join Ray, and own the search's broker while a block runs."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adept_tune.cli import treat_termination_as_interrupt
from adept_tune.errors import SpecError
from adept_tune.tuning.broker import NAMESPACE, Broker, broker_name
from adept_tune.tuning.host import HostPlan
from adept_tune.tuning.ray_tune import Share
from adept_tune.tuning.trial import ask_host
from adept_tune.tuning.work import Progress

LOCAL = "local"
TRIES = 3  # of a question whose host dies
PROCESS_BYTES = 110e6  # of a trial's process, measured


@contextmanager
def ray_session(address: str, verbose: bool) -> Iterator[None]:
    """Ray for the time of a block: its own on this machine, or a cluster's; inside another block, that one's.

    Args:
        address: ``local`` starts one that ends with the block; anything else is joined, ``auto`` finds the running one.
        verbose: Let Ray's own messages through.

    Raises:
        SpecError: There is nothing to join at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own habit of blanking CUDA_VISIBLE_DEVICES would hide the GPUs from hosts, which hold no GPU themselves.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not verbose:
        os.environ.setdefault("RAY_DEDUP_LOGS", "1")
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's failures are told by us, and in its record
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address == LOCAL:
        options |= {"address": "local", "include_dashboard": False}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"--address {address}: cannot join Ray there ({error}); start it, or use --address local"
        ) from error
    treat_termination_as_interrupt()  # Ray has set a handler of its own, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


def num_cpus() -> int:
    """CPUs of this Ray, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def has_gpu() -> bool:
    """Whether this Ray has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def share_of(device: str, slots: int, cpus: int) -> Share:
    """What each of `slots` trials of a device holds: a share of the GPU, or of the CPUs."""
    if device == "cuda":
        num_devices = max(1, int(ray.cluster_resources().get("GPU", 1)))
        return Share(num_cpus=0.01, num_gpus=_part(1, slots), concurrent=slots * num_devices)
    return Share(num_cpus=_part(cpus, slots), num_gpus=0.0, concurrent=slots)


def affordable_slots(devices: float) -> int:
    """Trials at once on each of some devices whose processes fit the memory of this Ray's hosts."""
    memory = ray.cluster_resources().get("memory", float("inf"))
    return max(1, int(min(memory / PROCESS_BYTES / devices, 1e6)))


def _part(whole: float, parts: int) -> float:
    """A share in Ray's unit of a ten-thousandth, rounded down so that all parts fit."""
    return math.floor(whole / parts * 1e4) / 1e4


@contextmanager
def broker_of(search_id: str, plan: HostPlan, data: Any, storage: str, progress: dict[str, Progress]) -> Iterator[str]:
    """The search's broker on this node, for the time of a block; gives its name."""
    name = broker_name(search_id)
    node_id = ray.get_runtime_context().get_node_id()
    broker = (
        ray.remote(Broker)
        .options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote(search_id, plan, [ray.put(data)], storage, progress)
    )
    try:
        yield name
    finally:
        with contextlib.suppress(Exception):  # it may have died with the cluster
            ray.kill(broker)


def settle(broker: str, **changes: int | None) -> None:
    """Let hosts made from now on have what the probe found best: fields of a `HostPlan`."""
    ray.get(ray.get_actor(broker, namespace=NAMESPACE).settle.remote(changes))


def rewind(broker: str, steps: Mapping[str, int]) -> None:
    """Let the broker start jobs from these steps, whatever it knew of them; 0 is their start."""
    actor = ray.get_actor(broker, namespace=NAMESPACE)
    ray.get([actor.journalled.remote(job, step) for job, step in steps.items()])


def ask(broker: str, share: Share, method: str, *argument_lists: Sequence[Any]) -> list[Any]:
    """Let hosts answer, each question from a task that holds a trial's share; as many at once as fit.

    A host that dies is made anew and asked again.

    Raises:
        AdeptError: What the host raised.
    """
    task = ask_host.options(num_cpus=share.num_cpus, num_gpus=share.num_gpus)
    for tries_left in reversed(range(TRIES)):
        try:
            return list(ray.get([task.remote(broker, method, *arguments) for arguments in argument_lists]))
        except ray.exceptions.WorkerCrashedError:
            if not tries_left:
                raise
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            while isinstance(cause, ray.exceptions.RayTaskError):
                cause = cause.cause
            if not (tries_left and isinstance(cause, ray.exceptions.RayActorError)):
                raise (cause or error) from None
    raise AssertionError("the last try returns or raises")
