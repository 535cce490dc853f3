"""How well two small passes tell the memory of any pass, and what happens when they are wrong.

Random mixes of trials are fused in one pass each; the table sets the most memory that it took against what was told.
Then the largest of them trains with half of that memory, and with ever less until its pass has to be split, as if the
packer had told far too little.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from workload import (
    add_workload,
    find_model,
    make_data,
    make_engine,
    markdown,
    parser,
    prepared,
    publish,
    scratch_folder,
)

from adept_tune.engine.config import TrialConfig
from adept_tune.engine.engine import Engine
from adept_tune.engine.memory import growth, release

GIB = 2**30


def mix(rng: random.Random, number: int) -> list[TrialConfig]:
    """Some trials that differ in all that a pass's memory could depend on."""
    return [
        TrialConfig(
            prompt_length=rng.randint(0, 100),
            width=rng.randint(0, 40),
            batch_size=rng.choice([4, 8, 16, 32]),
            max_steps=1000,
            seed=100 * number + place,
            data_seed=rng.randint(0, 9),
        )
        for place in range(rng.randint(1, 4))
    ]


def measured(engine: Engine, configs: list[TrialConfig]) -> tuple[int, float]:
    """Tokens and most bytes of one fused step of a mix."""
    slots = [engine.join(config) for config in configs]
    engine.num_tokens()  # starts them anew
    _, most = growth(lambda: engine.step(slots), engine.backbone.device)
    _, tokens = engine.num_tokens()
    for slot in slots:
        engine.leave(slot)
    return tokens, most


@contextmanager
def cramped(engine: Engine, num_bytes: float) -> Iterator[None]:
    """Leave the process little more memory than it has."""
    device = engine.backbone.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        release(device)
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + num_bytes) / total)
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    release(device)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(pages * resource.getpagesize() + num_bytes), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def survive(engine: Engine, configs: list[TrialConfig], num_bytes: float, steps: int) -> str:
    """Train a mix in too little memory, and say how it went."""
    engine.limits.tokens_per_pass = None
    slots = [engine.join(config) for config in configs]
    with cramped(engine, num_bytes):
        for _ in range(steps):
            engine.step(slots)
    ended = sum(engine.step_of(slot) == steps for slot in slots)
    for slot in slots:
        engine.leave(slot)
    passes = (
        "one pass" if engine.limits.tokens_per_pass is None else f"passes of {engine.limits.tokens_per_pass:,} tokens"
    )
    return f"{ended} of {len(configs)} trials took all {steps} steps, in {passes}"


def main() -> int:
    """Measure and print the table."""
    p: argparse.ArgumentParser = parser(__doc__)
    add_workload(p, "t5-small")
    p.add_argument("--mixes", type=int, default=20, help="random ones (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the mixes (default: %(default)s)")
    options = prepared(p.parse_args())
    rng = random.Random(options.seed)
    with scratch_folder() as scratch:
        info = find_model(options.model, scratch)
        engine = make_engine(info, make_data(info, options.lengths), 4, options.device, options.precision)
    engine.limits.tokens_per_pass, engine.graphs = None, None  # what is replayed takes its memory once, and keeps it
    probe = engine.join(TrialConfig(prompt_length=100, width=40, batch_size=32, max_steps=1000))
    need = engine.need(probe)
    engine.leave(probe)
    rows, errors, largest, at = [], [], 0.0, list[TrialConfig]()
    for number in range(options.mixes):
        configs = mix(rng, number)
        tokens, most = measured(engine, configs)
        if most > largest:
            largest, at = most, configs
        errors.append(need.of(tokens) / most - 1)
        cells = [f"{len(configs)} trials, {sum(c.batch_size for c in configs)} rows", f"{tokens:,}"]
        rows.append([*cells, f"{need.of(tokens) / GIB:.2f}", f"{most / GIB:.2f}", f"{errors[-1]:+.0%}"])
    free = largest
    while engine.limits.tokens_per_pass is None and free > largest / 32:  # what a process has kept is its own already
        free /= 2
        told = survive(engine, at, free, 3)
    where = f"{Path(options.model).name}, lengths of {options.lengths}, {options.precision}"
    head = f"{where}: {need.fixed_bytes / GIB:.2f} GiB and {need.token_bytes / 1024:.0f} KiB a token, from two passes."
    tail = (
        f"Error between {min(errors):+.0%} and {max(errors):+.0%}; too little was told "
        f"{sum(error < 0 for error in errors)} times. With {free / GIB:.2f} GiB free: {told}."
    )
    table = markdown(["mix", "tokens", "told, GiB", "taken, GiB", "error"], rows)
    publish("How well the packer tells memory", [head, table, tail], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
