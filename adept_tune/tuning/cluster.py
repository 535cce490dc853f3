"""Start or join Ray, and own the search's broker while a block runs."""

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from adept_tune.tuning.version import own_version
from adept_tune.tuning.work import Progress

LOCAL = "local"
MAX_GPUS = "ADEPT_TUNE_MAX_GPUS"
VERSION_S = 120.0  # for a node to start a process and say which version it has
TRIES = 3  # of a question whose host dies
PROCESS_BYTES = 110e6  # of a trial's process, measured
MOST_SLOTS = 1024  # on a device, where nothing else limits them


@contextmanager
def ray_session(address: str, verbose: bool) -> Iterator[None]:
    """Ray for the time of a block: its own on this machine, or a cluster's; inside another block, that one's.

    Args:
        address: ``local`` starts one that ends with the block; anything else is joined, ``auto`` finds the running one.
        verbose: Let Ray's own messages through.

    Raises:
        SpecError: There is nothing to join at the address, or the versions there differ from ours.
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
        # A trial's failures are told by us, and in its record.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address == LOCAL:
        options |= {"address": "local", "include_dashboard": False}
    else:
        options["address"] = address
        if address != "auto":
            os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer it to what it is told
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"--address {address}: cannot join Ray there ({error}); start it, or use --address local"
        ) from error
    treat_termination_as_interrupt()  # Ray has set a handler of its own, which ends the process at once
    try:
        if address != LOCAL:
            _check_versions(address)
        yield
    finally:
        ray.shutdown()


def _check_versions(address: str) -> None:
    """See that every node has the adept_tune that we are; Ray itself compares its own version and Python's.

    Raises:
        SpecError: One has another; shows both.
    """

    def version_there() -> str:  # nested, so that it travels whole to nodes that may not have its module
        try:
            from adept_tune.tuning.version import own_version
        except ImportError as error:
            return f"none, or one that does not tell ({error})"
        return own_version()

    task = ray.remote(num_cpus=0, max_retries=0)(version_there)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): where
        for node, where in nodes.items()
    }
    for answer, where in asked.items():
        try:
            there = ray.get(answer, timeout=VERSION_S)
        except ray.exceptions.RayError:
            continue  # the node is on its way out; whoever lives on is asked
        if there != (here := own_version()):
            raise SpecError(
                f"--address {address}: the node {where} has adept_tune {there}; here it is {here}; install the same on "
                "both (`ray up` of the cluster's file does), or use --address local"
            )


def launchable_gpus(address: str) -> int:
    """The largest number of GPUs that the cluster at an address may launch, of which none need be there yet.

    Ray does not tell; `cluster.yaml` exports it on the head as ``ADEPT_TUNE_MAX_GPUS``. A Ray of this machine's own
    launches none.

    Raises:
        SpecError: The variable holds no whole number.
    """
    text = os.environ.get(MAX_GPUS, "").strip()
    if address == LOCAL or not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise SpecError(f"{MAX_GPUS}={text}: give the whole number of GPUs that the cluster may launch, or unset it")
    return int(text)


def has_gpu() -> bool:
    """Whether this Ray has a GPU now."""
    return _num_gpus() > 0


def node_cpus() -> int:
    """CPUs of the largest node of this Ray, at least 1."""
    return max(1, *_cpus_by_node())


def share_of(device: str, slots: int, launchable: int = 0) -> Share:
    """What each of `slots` trials of a device holds: a share of the GPU, or of a node's CPUs.

    A share of CPUs is one of the largest node's, so a smaller node takes fewer trials, as is its part.

    Args:
        device: ``cuda`` or ``cpu``.
        slots: Trials at once on one device.
        launchable: GPUs that the cluster may grow to.
    """
    if device == "cuda":

        def on_gpus() -> int:
            return slots * max(1, launchable, _num_gpus())

        return Share(num_cpus=0.01, num_gpus=_part(1, slots), concurrent=on_gpus(), room=on_gpus)
    num_cpus = _part(node_cpus(), slots)

    def on_cpus() -> int:
        return max(1, sum(min(slots, int(cpus / num_cpus + 1e-9)) for cpus in _cpus_by_node()))

    return Share(num_cpus=num_cpus, num_gpus=0.0, concurrent=on_cpus(), room=on_cpus)


def _num_gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _cpus_by_node() -> list[int]:
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def affordable_slots(device: str) -> int:
    """Trials at once on each device whose processes fit the memory of its node, of the nodes that are there."""
    kind = "GPU" if device == "cuda" else "CPU"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    each = [node.get("memory", 0.0) / (node["GPU"] if device == "cuda" else 1) for node in nodes]
    return max(1, int(min([memory / PROCESS_BYTES for memory in each if memory], default=MOST_SLOTS)))


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


def await_gpu(share: Share, say: Callable[[str], None]) -> None:
    """Ask for a trial's share where the cluster has no GPU yet, and come back when it has launched one.

    Args:
        share: What a trial holds.
        say: Told what is waited for, at once and every minute.
    """
    if not share.num_gpus or has_gpu():
        return
    say("The cluster has no GPU yet and launches one: minutes are usual; `ray status` on its head says what it does.")
    asked = ray.remote(**share.options(), max_retries=-1)(lambda: None).remote()
    for minutes in itertools.count(1):
        if ray.wait([asked], timeout=60)[0]:
            return
        say(f"No GPU after {minutes} min; Ctrl-C gives up.")


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
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError):
            if not tries_left:
                raise
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            while isinstance(cause, ray.exceptions.RayTaskError):
                cause = cause.cause
            if not (tries_left and isinstance(cause, ray.exceptions.RayActorError)):
                raise (cause or error) from None
    raise AssertionError("the last try returns or raises")
