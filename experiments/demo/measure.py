"""Measure the demonstration on its test half: chance, the frozen model, every method's default, winners of searches.

All of a method's runs train fused in one engine, without Ray. Each seed has its own start, dropout and order of rows,
derived from a seed that no search uses. Figures are means over the seeds with standard errors over seeds and rows.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adept_tune.console import shown
from adept_tune.engine.build import build_engine
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.reading import Evaluation
from adept_tune.errors import AdeptError
from adept_tune.methods import get_method
from adept_tune.tasks import get_task
from adept_tune.tasks.metrics import chance
from adept_tune.tracking import versions
from adept_tune.tuning.host import Split
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.record import Record
from adept_tune.tuning.retrain import Spread
from adept_tune.tuning.samplers import derive_seed
from adept_tune.tuning.search import DEMONSTRATION_BATCH_SIZE
from adept_tune.tuning.space import Params, read_space

SPLITS: tuple[Split, Split] = ("validation", "test")
METHODS = ("adept", "dept", "prompt-tuning")
MEASURING_SEED = 77_003  # of no search
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    method: str
    what: str
    configuration: str
    num_parameters: int
    validation: Spread
    test: Spread


@dataclass(frozen=True)
class Candidate:
    """A configuration to measure."""

    what: str
    params: Params
    batch_size: int


def materials_of(method: str) -> Materials:
    """The demonstration's rows and model with a method's space."""
    model = get_task("demo").model
    assert model is not None
    return gather("demo", None, str(ROOT / "adept_tune" / model), read_space(f"{method}-demo"), None, None)


def settings(materials: Materials, candidate: Candidate, max_steps: int, seed: int) -> TrialConfig:
    """A candidate's run with one seed."""
    return materials.space.config(
        candidate.params,
        max_steps=max_steps,
        batch_size=candidate.batch_size,
        labels="digits",
        seed=derive_seed(MEASURING_SEED, "start", seed),
        data_seed=derive_seed(MEASURING_SEED, "order", seed),
    )


def measure(materials: Materials, candidates: Sequence[Candidate], max_steps: int, seeds: int) -> list[Line]:
    """Train every candidate over the seeds, and score it on validation and test."""
    lines = []
    engine = build_engine(materials.info, materials.space.method, materials.data, seeds)
    for candidate in candidates:
        slots = [engine.join(settings(materials, candidate, max_steps, seed)) for seed in range(seeds)]
        for _ in range(max_steps):
            engine.step(slots)
        scored = {split: [engine.score_state(engine.state(slot), split) for slot in slots] for split in SPLITS}
        for slot in slots:
            engine.leave(slot)
        space = materials.space
        spreads = [spread(scored[split]) for split in SPLITS]
        configuration = shown(space.shown(candidate.params)) + f" batch {candidate.batch_size}"
        count = space.num_parameters(candidate.params)
        lines.append(Line(space.method.name, candidate.what, configuration, count, *spreads))
        print(f"{lines[-1].method}, {candidate.what}: test {said(lines[-1].test)}", flush=True)
    return lines


def spread(evaluations: Sequence[Evaluation]) -> Spread:
    """Mean and errors of several seeds."""
    scores = [evaluation.score for evaluation in evaluations]
    return Spread.of([score.value for score in scores], [score.standard_error for score in scores])


def untuned() -> list[Line]:
    """Chance, and the model as it ships: ADePT with no prompt and an offset of zero, before its first step."""
    materials = materials_of("adept")
    engine = build_engine(materials.info, materials.space.method, materials.data, 1)
    slot = engine.join(TrialConfig(prompt_length=0, width=1, max_steps=1))
    state = engine.state(slot)
    data = engine.data
    by_chance = [chance(data.metric, split.labels.tolist()) for split in (data.validation, data.test)]
    print("none, best constant answer and frozen model", flush=True)
    return [
        Line("none", "best constant answer", "", 0, *[Spread.of([s.value], [s.standard_error]) for s in by_chance]),
        Line("none", "frozen model", "", 0, *[spread([engine.score_state(state, split)]) for split in SPLITS]),
    ]


def candidates_of(method: str, materials: Materials, folders: Sequence[Path], batch_size: int) -> list[Candidate]:
    """The space's first point, and the winners of the method's searches among the folders."""
    found = [Candidate("default", materials.space.points[0], batch_size)]
    for folder in folders:
        record = Record.read(folder)
        if record.spec.task == "demo" and record.spec.method == method and record.winner is not None:
            names = set(materials.space.dimensions)
            params = {name: value for name, value in record.winner["params"].items() if name in names}
            found.append(Candidate(f"winner of {record.spec.trials} trials", params, record.spec.batch_size))
    return found


def said(spread: Spread) -> str:
    """A mean with its standard error."""
    return f"{spread.mean:.4f} ± {spread.se:.4f}"


def table(lines: Sequence[Line], command: str, max_steps: int, seeds: int) -> str:
    """The lines in Markdown."""
    found = versions() | {"python": platform.python_version(), "cores": str(os.cpu_count())}
    names = ("torch", "transformers", "python", "cores")
    head = [
        f"`{command}`: {max_steps} steps, {seeds} seeds; {', '.join(f'{name} {found.get(name)}' for name in names)}.",
        "",
        "| method | which | configuration | parameters | validation accuracy | test accuracy |",
        "| --- | --- | --- | ---: | --- | --- |",
    ]
    body = [
        f"| {line.method} | {line.what} | {line.configuration} | {line.num_parameters:,} "
        f"| {said(line.validation)} | {said(line.test)} |"
        for line in lines
    ]
    return "\n".join([*head, *body]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", type=Path, help="folders of finished searches of the demonstration")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each configuration (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=DEMONSTRATION_BATCH_SIZE, help="of the defaults (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.batch_size < 1:
        print("error: --seeds and --batch-size must be at least 1", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    max_steps = get_task("demo").published_steps or 1
    lines = untuned()
    try:
        for method in METHODS:
            materials = materials_of(get_method(method).name)
            chosen = candidates_of(method, materials, args.experiments, args.batch_size)
            lines += measure(materials, chosen, max_steps, args.seeds)
    except AdeptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = " ".join(["python experiments/demo/measure.py", *map(str, argv if argv is not None else sys.argv[1:])])
    text = table(lines, command, max_steps, args.seeds)
    print(text)
    if args.out is not None:
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
