"""Trial-steps a second: trials fused in one pass, against one process a trial and against trials in turn.

Sides, all measured in each round of one run, on the same model, rows, precision and batch:
  fused K    one engine steps K trials in one pass
  packed T   the same for most trials, rows cut by length into passes of at most T tokens; on a CPU also with a pass for
             each thread side by side ("in lanes"); a host takes the fastest
  in turn    one process, one shared backbone, a trial after the other
  stock CxT  stock Ray Tune: C trials at once, a process of T threads (or 1/C of the GPU) each, backbone kept in the
             process, actors reused; each process runs our own engine with one trial, its batch in one pass
  apart CxT  on a CPU, the most trials fused in C such processes, in passes of 1,024 tokens: what lanes would do if
             threads of one process did not wait for its interpreter; a search does not run so
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
from pathlib import Path
from typing import Any

import torch
from workload import (
    PRECISIONS,
    WARM_UP_STEPS,
    Timing,
    busy,
    count_flops,
    find_model,
    in_turns,
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
    synchronize,
    trial,
)

from adept_tune.backbones import BackboneInfo
from adept_tune.backbones.load import Precision
from adept_tune.engine.engine import Engine
from adept_tune.engine.memory import forget_peak, peak_bytes
from adept_tune.tasks.tokens import TaskData
from adept_tune.tuning.search import TOKENS_PER_PASS

QUICK = {"cpu": (["demo", "t5-small"], ["cola"]), "cuda": (["demo", "t5-small", "t5-base"], ["cola"])}
FULL = {
    "cpu": (["demo", "t5-small"], ["cola", "rte", "padded-256"]),
    "cuda": (["demo", "t5-small", "t5-base", "t5-large"], ["cola", "rte", "padded-256"]),
}
GPU_FRACTIONS = (1, 2, 4, 8)


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

        forget_peak(engine.backbone.device)
        flops = costs[name].flops if name in costs else count_flops(step) / count  # sees this thread alone
        engine.limits.lanes.split(num_lanes)
        step()
        engine.num_tokens()  # starts them anew
        step_s = seconds(options.device, step, max(1, options.trial_steps // count))
        real, read = engine.num_tokens()
        costs[name] = Cost(peak_bytes(engine.backbone.device) / 2**30, 1 - real / read, flops)
        return count / step_s

    return {way[0]: (lambda w=way: rate(*w)) for way in ways}  # type: ignore[misc]


def outside(cell: Cell, options: argparse.Namespace) -> float:
    """Share of a step of most trials that is spent outside the model's forward and the backward pass, on a CPU."""
    engine = make_engine(cell.info, cell.data, max(options.trials), options.device, cell.precision)
    slots = [engine.join(trial(cell.info, cell.batch_size, number)) for number in range(max(options.trials))]
    engine.step(slots)
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
        step_s = seconds(options.device, lambda: engine.step(slots))
        return 1 - inside / step_s
    finally:
        torch.autograd.grad = backward


# -- stock Ray Tune --------------------------------------------------------------------------------------------------

_kept: dict[str, Engine] = {}  # the backbone that a process keeps from trial to trial


def stock_trial(
    config: dict[str, Any],
    cell: Cell,
    device: str,
    threads: int,
    window_s: float,
    meeting: str,
    count: int,
    fused: int,
) -> None:
    """A process's trial, or some: wait until all processes are ready, then step for a while and report the rate."""
    from ray import tune

    torch.set_num_threads(threads)
    key = f"{cell.info.name} {cell.precision} {fused}"
    if key not in _kept:
        _kept.clear()
        _kept[key] = make_engine(cell.info, cell.data, fused, device, cell.precision)
        if fused == 1:
            _kept[key].limits.tokens_per_pass = None
    engine = _kept[key]
    slots = [engine.join(trial(cell.info, cell.batch_size, config["number"] * fused + i)) for i in range(fused)]
    forget_peak(engine.backbone.device)
    for _ in range(WARM_UP_STEPS):
        engine.step(slots)
    synchronize(device)
    (Path(meeting) / uuid.uuid4().hex).touch()
    while sum(1 for _ in Path(meeting).iterdir()) < count:
        time.sleep(0.01)
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < window_s:
        engine.step(slots)
        synchronize(device)
        steps += 1
    rate = fused * steps / (time.perf_counter() - begun)
    for slot in slots:
        engine.leave(slot)
    tune.report({"rate": rate, "memory": peak_bytes(engine.backbone.device) / 2**30})


def stock_rate(
    name: str,
    cell: Cell,
    options: argparse.Namespace,
    scratch: Path,
    costs: dict[str, Cost],
    count: int,
    threads: int,
    fused: int = 1,
) -> float:
    """Trial-steps a second of stock Ray Tune with some processes at once."""
    from ray import tune

    meeting = scratch / uuid.uuid4().hex
    meeting.mkdir()
    trainable = tune.with_parameters(
        stock_trial,
        cell=cell,
        device=options.device,
        threads=threads,
        window_s=options.window_s,
        meeting=str(meeting),
        count=count,
        fused=fused,
    )
    share = {"gpu": 1 / count} if options.device == "cuda" else {}
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": (os.cpu_count() or 1) / count} | share),
        param_space={"number": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=count, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(scratch / "ray"), verbose=0),
    )
    results = tuner.fit()
    if results.num_errors:
        raise SystemExit(f"stock Ray Tune, {count} trials at once: {results.errors[0]}")
    costs[name] = Cost(sum(result.metrics["memory"] for result in results))
    return float(sum(result.metrics["rate"] for result in results))


def stock_sides(
    cell: Cell, options: argparse.Namespace, scratch: Path, costs: dict[str, Cost]
) -> dict[str, Callable[[], float]]:
    """One side for each number of processes; on a CPU they divide the threads, and the most are fused as well."""
    if options.device == "cuda":
        ways = [(f"stock {count}x1", count, 1, 1) for count in GPU_FRACTIONS]
    else:
        ways = [(f"stock {n}x{options.threads // n}", n, options.threads // n, 1) for n in _divisors(options.threads)]
        _, count, threads, _ = ways[-1]
        if (fused := max(options.trials) // count) > 1:
            ways.append((f"apart {count}x{threads}", count, threads, fused))
    return {way[0]: (lambda w=way: stock_rate(w[0], cell, options, scratch, costs, *w[1:])) for way in ways}  # type: ignore[misc]


def _divisors(number: int) -> list[int]:
    return [count for count in range(1, number + 1) if number % count == 0]


# -- the table -------------------------------------------------------------------------------------------------------


def measure(cell: Cell, options: argparse.Namespace, scratch: Path) -> str:
    """Every side of one cell, and what follows from them."""
    costs: dict[str, Cost] = {}
    ours = fused_sides(cell, options, costs)
    stock = stock_sides(cell, options, scratch, costs)
    with busy(options.beside):
        timings = in_turns(options.rounds, ours | stock)
    peak = machine_peak(options.device, cell.precision)
    apart = [name for name in stock if name.startswith("apart")]
    rows = []
    for name, timing in timings.items():
        same = costs[name if name in ours else "in turn"]  # the process of a stock trial runs the same step
        share = timing.median * same.flops / peak
        told = ("–", "–") if name in apart else (f"{same.padded:.0%}", f"{share:.0%}")
        rows.append((name, timing, f"{costs[name].memory:.2f}", *told))
    best_ours, best_stock = (
        max(side, key=lambda name: timings[name].median) for side in (ours, stock.keys() - set(apart))
    )
    print(f"{cell.model} {cell.lengths} {cell.precision}: {verdict(timings, best_ours, best_stock)}", flush=True)
    return "\n\n".join(
        [
            f"## {cell.model}, lengths of {cell.lengths}, {cell.precision}, batch {cell.batch_size}"
            + (f", {options.beside} busy beside" if options.beside else ""),
            markdown(["side", "trial-steps a second", "peak memory, GiB", "padded", "of the matrix peak"], rows),
            verdict(timings, best_ours, best_stock) + f" Measured matrix peak: {peak / 1e9:.0f} GFLOP/s.",
            *(f"{name} over {best_stock}: {timings[name].median / timings[best_stock].median:.2f}." for name in apart),
            f"{outside(cell, options):.0%} of a packed step lies outside the model's forward and the backward pass."
            if options.device == "cpu"
            else "",
        ]
    )


def verdict(timings: dict[str, Timing], ours: str, stock: str) -> str:
    """The ratios that the benchmark is for."""

    def ratio(a: str, b: str) -> str:
        return f"{timings[a].median / timings[b].median:.2f}"

    return (
        f"Best of ours ({ours}) over the best of stock ({stock}): **{ratio(ours, stock)}**; "
        f"over in turn: {ratio(ours, 'in turn')}."
    )


def main() -> int:
    """Measure the cells that were asked for."""
    p = parser(__doc__)
    p.add_argument("--models", nargs="+", help="demo, t5-small, t5-base, t5-large (random weights), or folders")
    p.add_argument("--lengths", nargs="+", help="cola, rte or padded-256")
    p.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="(default: both)")
    p.add_argument("--trials", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="fused (default: %(default)s)")
    p.add_argument("--batch-size", type=int, help="rows of a trial's step (default: 16; 32 on a GPU)")
    p.add_argument("--trial-steps", type=int, default=16, help="of a measurement, at least (default: %(default)s)")
    p.add_argument("--window-s", type=float, default=8.0, help="of a measurement of stock (default: %(default)s)")
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
