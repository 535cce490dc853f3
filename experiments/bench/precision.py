"""What bf16 costs in quality: the first point of a space, trained over the same seeds in each precision.

All seeds of a precision train fused in one engine, without Ray. The difference is taken seed by seed on both halves.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from workload import DEMO_MODEL, PRECISIONS, markdown, parser, prepared, publish

from adept_tune.backbones.load import Precision
from adept_tune.engine.build import build_engine
from adept_tune.errors import AdeptError
from adept_tune.tuning.host import Split
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.retrain import Spread
from adept_tune.tuning.samplers import derive_seed
from adept_tune.tuning.search import TOKENS_PER_PASS
from adept_tune.tuning.space import read_space

SPLITS: tuple[Split, Split] = ("validation", "test")
MEASURING_SEED = 77_005  # of no search


def scores(materials: Materials, precision: Precision, options: argparse.Namespace) -> dict[Split, list[float]]:
    """Train every seed to its end; its score on each half."""
    engine = build_engine(
        materials.info,
        materials.space.method,
        materials.data,
        options.seeds,
        device=options.device,
        precision=precision,
        tokens_per_pass=TOKENS_PER_PASS[options.device][0],
    )
    space = materials.space.at(engine.backbone.embedding_rms)
    configs = [
        space.config(
            space.points[0],
            max_steps=options.max_steps,
            batch_size=options.batch_size,
            labels=options.labels,
            seed=derive_seed(MEASURING_SEED, "start", seed),
            data_seed=derive_seed(MEASURING_SEED, "order", seed),
        )
        for seed in range(options.seeds)
    ]
    slots = [engine.join(config) for config in configs]
    begun = time.monotonic()
    for step in range(options.max_steps):
        engine.step(slots)
        if (step + 1) % 20 == 0:
            print(f"{precision}: step {step + 1}, {time.monotonic() - begun:.0f} s", flush=True)
    return {split: [engine.score_state(engine.state(s), split).score.value for s in slots] for split in SPLITS}


def main() -> int:
    """Train, score and print the table."""
    p = parser(__doc__)
    p.add_argument("--task", default="demo", help="(default: %(default)s)")
    p.add_argument("--model", default=str(DEMO_MODEL), help="folder or Hub name (default: the demonstration's)")
    p.add_argument("--data-dir", type=Path, help="folder of the task's rows")
    p.add_argument("--labels", choices=["digits", "words"], default="digits", help="(default: %(default)s)")
    p.add_argument("--space", default="adept-demo", help="whose first point is trained (default: %(default)s)")
    p.add_argument("--max-steps", type=int, default=300, help="(default: %(default)s)")
    p.add_argument("--batch-size", type=int, default=16, help="rows of a step (default: %(default)s)")
    p.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    options = prepared(p.parse_args())
    try:
        space = read_space(options.space)
        materials = gather(options.task, options.data_dir, options.model, space, None, options.labels)
        found = {precision: scores(materials, precision, options) for precision in PRECISIONS}
    except AdeptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for split in SPLITS:
        spreads = [Spread.of(found[precision][split], [0.0] * options.seeds) for precision in PRECISIONS]
        pairs = zip(*(found[precision][split] for precision in PRECISIONS), strict=True)
        gain = Spread.of([theirs - ours for ours, theirs in pairs], [0.0] * options.seeds)
        rows.append((split, *(f"{s.mean:.4f} ± {s.se:.4f}" for s in (*spreads, gain))))
    name = materials.task.metric
    head = [f"{name}, mean ± s.e. over seeds", *PRECISIONS, "bf16 above fp32, seed by seed"]
    what = f"{options.task}, {options.max_steps} steps of {options.batch_size} rows, {options.seeds} seeds."
    publish("What bf16 costs in quality", [what, markdown(head, rows)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
