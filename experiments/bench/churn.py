"""What it costs that trials come and go: steady company against the same with one replaced every few steps.

Both sides step the same number of trials in the same engine, and are measured in turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from workload import (
    Timing,
    add_workload,
    find_model,
    in_turns,
    make_data,
    make_engine,
    markdown,
    most_lanes,
    parser,
    prepared,
    publish,
    scratch_folder,
    seconds,
    trial,
)

from adept_tune.engine.engine import Engine


def replace_eldest(engine: Engine, slots: list[int], join: Callable[[], int]) -> None:
    """Save the state of the trial that was there longest, as a search does, and seat another in its place."""
    eldest = slots.pop(0)
    engine.state(eldest).to_bytes()
    engine.leave(eldest)
    slots.append(join())


def main() -> int:
    """Measure and print the table."""
    p = parser(__doc__)
    add_workload(p, "demo")
    p.add_argument("--trials", type=int, default=8, help="at once (default: %(default)s)")
    p.add_argument("--every", nargs="+", type=int, default=[5, 20, 50], help="steps (default: %(default)s)")
    p.add_argument("--batch-size", type=int, default=16, help="rows of a trial's step (default: %(default)s)")
    p.add_argument("--steps", type=int, default=100, help="of a measurement (default: %(default)s)")
    options = prepared(p.parse_args())
    with scratch_folder() as scratch:
        info = find_model(options.model, scratch)
        data = make_data(info, options.lengths)
        engine = make_engine(info, data, options.trials, options.device, options.precision, most_lanes(options))
    joined = 0

    def join() -> int:
        nonlocal joined
        joined += 1
        return engine.join(trial(info, options.batch_size, joined))

    slots = [join() for _ in range(options.trials)]

    def run(every: int | None) -> float:
        taken = 0

        def step() -> None:
            nonlocal taken
            if every and taken % every == 0:
                replace_eldest(engine, slots, join)
            engine.step(slots)
            taken += 1

        return seconds(options.device, step, options.steps)

    run(None)
    sides: dict[str, Callable[[], float]] = {"steady": lambda: run(None)}
    sides |= {f"one of them every {every} steps": (lambda e=every: run(e)) for every in options.every}  # type: ignore[misc]
    timings: dict[str, Timing] = in_turns(options.rounds, sides)
    steady = timings["steady"].median
    rows = [
        (name, Timing(tuple(1000 * value for value in timing.values)), f"{100 * (timing.median / steady - 1):+.1f}%")
        for name, timing in timings.items()
    ]
    where = f"{Path(options.model).name}, lengths of {options.lengths}, {options.precision}"
    head = f"{where}: {options.trials} trials, batch {options.batch_size}; a trial that leaves is saved first."
    publish("The cost of churn", [head, markdown(["replaced", "ms a step", "cost"], rows)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
