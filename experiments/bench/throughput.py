"""Trial-steps a second: trials fused in one pass, against one process a trial and against trials in turn.

Sides, all measured in each round of one run, on the same model, rows, precision and batch:
  fused K    one engine steps K trials in one pass
  packed T   the same for most trials, rows cut by length into passes of at most T tokens; on a CPU also with a pass for
             each thread side by side ("in lanes"); a host takes the fastest
  in turn    one process, one shared backbone, a trial after the other
  stock CxT  stock Ray Tune: C trials at once, a process of T threads (or 1/C of the GPU) each, backbone kept in the
             process; the model as transformers has it, each operation launched by itself; the batch in one pass, rows
             padded as ours are, one optimizer step in a handful of operations, as ours are
  alone CxT  the same with the parts of a model that are ours, on a CPU with what a process frees kept, and on a GPU
             with passes replayed as ours are: what fusing adds to these
  apart CxT  on a CPU, the most trials fused in C such processes, in passes of 1,024 tokens: what lanes would do if
             threads of one process did not wait for its interpreter; a search does not run so
The last three are processes of one run of Ray Tune, which take their turns while the others wait.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from workload import (
    PRECISIONS,
    Timing,
    busy,
    count_flops,
    find_model,
    machine_peak,
    make_data,
    make_engine,
    markdown,
    most_lanes,
    parser,
    prepared,
    publish,
    scratch_folder,
    seconds,
    stock_model,
    synchronize,
    trial,
    warm_up_steps,
)

from adept_tune.backbones import BackboneInfo
from adept_tune.backbones.load import Precision
from adept_tune.engine.engine import Engine
from adept_tune.engine.memory import forget_peak, peak_bytes, release
from adept_tune.tasks.tokens import TaskData
from adept_tune.tuning.search import TOKENS_PER_PASS

QUICK = {"cpu": (["demo", "t5-small"], ["cola"]), "cuda": (["demo", "t5-small", "t5-base"], ["cola"])}
FULL = {
    "cpu": (["demo", "t5-small"], ["cola", "rte", "padded-256"]),
    "cuda": (["demo", "t5-small", "t5-base", "t5-large"], ["cola", "rte", "padded-256"]),
}
GPU_FRACTIONS = (1, 2, 4, 8)
MEETING_S = 600.0


@dataclass(frozen=True)
class Cell:
    """What one table is about."""

    model: str
    lengths: str
    precision: Precision
    batch_size: int
    info: BackboneInfo
    data: TaskData


# -- our sides -------------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What a side takes besides time: peak memory in GiB, padded share, and operations of a trial-step."""

    memory: float
    padded: float = 0.0
    flops: float = 0.0


def fused_sides(cell: Cell, options: argparse.Namespace, costs: dict[str, Cost]) -> dict[str, Callable[[], float]]:
    """One side for each number of trials, then the other ways of running the most of them."""
    most: int = max(options.trials)
    limits = [limit for limit in TOKENS_PER_PASS[options.device] if limit is not None]
    ways: list[tuple[str, int, int | None, int]] = [(f"fused {count}", count, None, 1) for count in options.trials]
    ways += [(f"packed {limit}", most, limit, 1) for limit in limits]
    if (lanes := most_lanes(options)) > 1:
        ways += [(f"packed {limit}, in lanes", most, limit, lanes) for limit in limits]
    ways.append(("in turn", most, None, 1))
    engine = make_engine(cell.info, cell.data, most, options.device, cell.precision)
    slots = [engine.join(trial(cell.info, cell.batch_size, number)) for number in range(most)]

    def rate(name: str, count: int, tokens_per_pass: int | None, num_lanes: int) -> float:
        engine.limits.tokens_per_pass = tokens_per_pass
        engine.limits.lanes.split(1)
        company = [[slot] for slot in slots] if name == "in turn" else [slots[:count]]

        def step() -> None:
            for some in company:
                engine.step(some)

        if engine.graphs:
            engine.graphs.forget()  # their memory is taken when they are captured
        release(engine.backbone.device)
        forget_peak(engine.backbone.device)
        flops = costs[name].flops if name in costs else flops_of(engine, step) / count  # sees this thread alone
        engine.limits.lanes.split(num_lanes)
        for _ in range(warm_up_steps(options.device)):
            step()
        engine.num_tokens()  # starts them anew
        steps_s = rate_of(options.device, step, options.window_s)
        real, read = engine.num_tokens()
        costs[name] = Cost(peak_bytes(engine.backbone.device) / 2**30, 1 - real / read, flops)
        return count * steps_s

    return {way[0]: (lambda w=way: rate(*w)) for way in ways}  # type: ignore[misc]


def rate_of(device: str, step: Callable[[], None], window_s: float) -> float:
    """Steps a second, of the whole ones that begin within a window."""
    synchronize(device)
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < window_s:
        step()
        steps += 1
    synchronize(device)
    return steps / (time.perf_counter() - begun)


def flops_of(engine: Engine, step: Callable[[], None]) -> int:
    """Operations of a step, each launched by itself: what is replayed cannot be counted."""
    graphs, engine.graphs = engine.graphs, None
    forward = engine.backbone.target_nll
    # torch's counter follows gradients to a module's inputs, and these must not be where the gradient ends.
    engine.backbone.target_nll = lambda embeds, *rest: forward(embeds.view_as(embeds), *rest)  # type: ignore[method-assign]
    try:
        return count_flops(step)
    finally:
        engine.graphs = graphs
        del engine.backbone.target_nll


def outside(cell: Cell, options: argparse.Namespace) -> float:
    """Share of a packed step of most trials that is spent outside the model's forward and its way back."""
    engine = make_engine(cell.info, cell.data, max(options.trials), options.device, cell.precision)
    slots = [engine.join(trial(cell.info, cell.batch_size, number)) for number in range(max(options.trials))]
    for _ in range(warm_up_steps(options.device)):
        engine.step(slots)
    return replayed_outside(engine, slots) if engine.graphs else launched_outside(engine, slots)


def replayed_outside(engine: Engine, slots: list[int]) -> float:
    """Of a GPU: a step's passes are replayed once more without the rest of it."""
    graphs, asked = engine.graphs, list[tuple[torch.Tensor, ...]]()
    assert graphs is not None
    run = graphs.run

    def noted(*question: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(question)
        return run(*question)

    graphs.run = noted  # type: ignore[method-assign, assignment]
    step_s = seconds("cuda", lambda: engine.step(slots), 10)
    graphs.run = run  # type: ignore[method-assign]
    return 1 - seconds("cuda", lambda: [run(*question) for question in asked]) / 10 / step_s


def launched_outside(engine: Engine, slots: list[int]) -> float:
    """Of a CPU: what is called of the model is timed."""
    inside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal inside
            begun = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                inside += time.perf_counter() - begun

        return run

    forward, backward = engine.backbone.target_nll, torch.autograd.grad
    engine.backbone.target_nll, torch.autograd.grad = timed(forward), timed(backward)  # type: ignore[method-assign]
    try:
        step_s = seconds("cpu", lambda: engine.step(slots))
        return 1 - inside / step_s
    finally:
        torch.autograd.grad = backward


# -- stock Ray Tune --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """What some processes do while the others wait: each steps so many fused trials."""

    name: str
    count: int
    threads: int
    fused: int = 1
    stock: bool = False


def phases_of(options: argparse.Namespace) -> list[Phase]:
    """All numbers of processes: on a CPU they divide the threads."""
    cpu, threads = options.device == "cpu", options.threads
    counts = [n for n in range(1, threads + 1) if threads % n == 0] if cpu else GPU_FRACTIONS
    shares = [(count, threads // count if cpu else 1) for count in counts]
    phases = [Phase(f"stock {n}x{t}", n, t, stock=True) for n, t in shares]
    phases += [Phase(f"alone {n}x{t}", n, t) for n, t in shares]
    count, each = shares[-1]
    if cpu and (fused := max(options.trials) // count) > 1:
        phases.append(Phase(f"apart {count}x{each}", count, each, fused))
    return phases


def phase_engine(cell: Cell, device: str, phase: Phase) -> Engine:
    """What a process steps in a phase."""
    engine = make_engine(cell.info, cell.data, phase.fused, device, cell.precision, ours=not phase.stock)
    if phase.fused == 1:
        engine.limits.tokens_per_pass = None
    if phase.stock:
        engine.backbone.model = stock_model(cell.info, device, cell.precision)
        engine.graphs = None
    return engine


def take_part(config: dict[str, Any], cell: Cell, device: str, phases: list[Phase], window_s: float, room: str) -> None:
    """A process of Ray Tune: step in every phase that it is in, from when all are ready, and report the rates."""
    from ray import tune

    found: dict[str, tuple[float, float]] = {}
    engines: dict[tuple[int, bool], Engine] = {}
    everyone = max(phase.count for phase in phases)
    meet(Path(room) / "all here", everyone)
    for phase in phases:
        if config["number"] < phase.count:
            torch.set_num_threads(phase.threads)
            kind = phase.fused, phase.stock
            if kind not in engines:
                engines.clear()
                engines[kind] = phase_engine(cell, device, phase)
            engine = engines[kind]
            slots = [
                engine.join(trial(cell.info, cell.batch_size, config["number"] * phase.fused + i))
                for i in range(phase.fused)
            ]
            release(engine.backbone.device)
            forget_peak(engine.backbone.device)
            for _ in range(2 * warm_up_steps(device)):
                engine.step(slots)
            synchronize(device)
            meet(Path(room) / f"{phase.name} ready", phase.count)
            rate = phase.fused * rate_of(device, partial(engine.step, slots), window_s)
            found[phase.name] = rate, peak_bytes(engine.backbone.device) / 2**30
            for slot in slots:
                engine.leave(slot)
            del engine
        meet(Path(room) / f"{phase.name} done", everyone)
    tune.report({"found": found})


def meet(place: Path, count: int) -> None:
    """Wait until so many processes are here.

    Raises:
        TimeoutError: They do not come.
    """
    place.mkdir(parents=True, exist_ok=True)
    (place / uuid.uuid4().hex).touch()
    begun = time.monotonic()
    while sum(1 for _ in place.iterdir()) < count:
        if time.monotonic() - begun > MEETING_S:
            raise TimeoutError(f"{place.name}: not all came in {MEETING_S} s")
        time.sleep(0.01)


def process_rates(cell: Cell, options: argparse.Namespace, scratch: Path, costs: dict[str, Cost]) -> dict[str, float]:
    """Trial-steps a second of all phases."""
    from ray import tune

    phases, room = phases_of(options), scratch / uuid.uuid4().hex
    count = max(phase.count for phase in phases)
    settings = {"device": options.device, "phases": phases, "window_s": options.window_s, "room": str(room)}
    trainable = tune.with_parameters(take_part, cell=cell, **settings)
    share = {"gpu": 1 / count} if options.device == "cuda" else {}
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": (os.cpu_count() or 1) / count} | share),
        param_space={"number": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=count),
        run_config=tune.RunConfig(storage_path=str(scratch / "ray"), verbose=0),
    )
    results = tuner.fit()
    if results.num_errors:
        raise SystemExit(f"stock Ray Tune, {count} trials at once: {results.errors[0]}")
    found = [result.metrics["found"] for result in results]
    for phase in phases:
        costs[phase.name] = Cost(sum(one[phase.name][1] for one in found if phase.name in one))
    return {phase.name: sum(one[phase.name][0] for one in found if phase.name in one) for phase in phases}


# -- the table -------------------------------------------------------------------------------------------------------


def measure(cell: Cell, options: argparse.Namespace, scratch: Path) -> str:
    """Every side of one cell, and what follows from them."""
    costs: dict[str, Cost] = {}
    ours = fused_sides(cell, options, costs)
    found: dict[str, list[float]] = {name: [] for name in ours}
    with busy(options.beside):
        for _ in range(options.rounds):
            for name, side in ours.items():
                found[name].append(side())
            for name, rate in process_rates(cell, options, scratch, costs).items():
                found.setdefault(name, []).append(rate)
    timings = {name: Timing(tuple(rates)) for name, rates in found.items()}
    peak = machine_peak(options.device, cell.precision)
    rows = []
    for name, timing in timings.items():
        if name in ours:
            told = f"{costs[name].padded:.0%}", f"{timing.median * costs[name].flops / peak:.0%}"
        else:
            told = "–", "–"
        rows.append((name, timing, f"{costs[name].memory:.2f}", *told))
    print(f"{cell.model} {cell.lengths} {cell.precision}: {verdict(timings, list(ours))}", flush=True)
    return "\n\n".join(
        [
            f"## {cell.model}, lengths of {cell.lengths}, {cell.precision}, batch {cell.batch_size}"
            + (f", {options.beside} busy beside" if options.beside else ""),
            markdown(["side", "trial-steps a second", "peak memory, GiB", "padded", "of the matrix peak"], rows),
            verdict(timings, list(ours)) + f" Measured matrix peak: {peak / 1e9:,.0f} GFLOP/s.",
            f"{outside(cell, options):.0%} of a packed step lies outside the model's forward and the backward pass.",
        ]
    )


def verdict(timings: dict[str, Timing], ours: list[str]) -> str:
    """The ratios that the benchmark is for."""

    def best(*kinds: str) -> str:
        return max((name for name in timings if name.startswith(kinds)), key=lambda name: timings[name].median)

    first = max(ours, key=lambda name: timings[name].median)
    stock, alone, one = best("stock"), best("alone"), best("stock 1x")

    def over(name: str) -> str:
        return f"{timings[first].median / timings[name].median:.2f}"

    return (
        f"Best of ours ({first}) over the best of stock ({stock}): **{over(stock)}**; "
        f"over one trial at a time ({one}): {over(one)}; over the best of our parts without fusing ({alone}): "
        f"{over(alone)}; over in turn: {over('in turn')}."
    )


def main() -> int:
    """Measure the cells that were asked for."""
    p = parser(__doc__)
    p.add_argument("--models", nargs="+", help="demo, t5-small, t5-base, t5-large (random weights), or folders")
    p.add_argument("--lengths", nargs="+", help="cola, rte or padded-256")
    p.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="(default: both)")
    p.add_argument("--trials", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="fused (default: %(default)s)")
    p.add_argument("--batch-size", type=int, help="rows of a trial's step (default: 16; 32 on a GPU)")
    p.add_argument("--window-s", type=float, default=8.0, help="in which a side steps (default: %(default)s)")
    p.add_argument("--beside", type=int, default=0, help="busy processes beside every side (default: %(default)s)")
    p.add_argument("--full", action="store_true", help="all models of the device and all lengths")
    options = prepared(p.parse_args())
    import ray

    models, lengths = (FULL if options.full else QUICK)[options.device]
    batch_size = options.batch_size or (16 if options.device == "cpu" else 32)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would make stock lose to whatever else runs
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    parts = []
    with scratch_folder() as scratch:
        for model, length, precision in itertools.product(
            options.models or models, options.lengths or lengths, options.precisions
        ):
            info = find_model(model, scratch)
            cell = Cell(Path(model).name, length, precision, batch_size, info, make_data(info, length))
            parts.append(measure(cell, options, scratch))
    ray.shutdown()
    publish("Throughput of fused trials", parts, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
