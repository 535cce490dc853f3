"""Wall time of a whole search: ours against stock Ray Tune with ASHA and Optuna on the same space, seed and steps.

Sides, one after another in each round:
  ours          python -m adept_tune.search, up to the end of its search phase
  stock, kept   Ray Tune with actors reused and the backbone kept in each process
  stock         Ray Tune with its defaults: a process a trial, which loads the backbone

A stock trial has the model as transformers has it, as in throughput.py; it evaluates and reports at ASHA's rungs and at
its end alone, saves nothing and logs nowhere, which is less than ours does. Each trial of it has one core, as is Ray's
default, or its share of the GPU. Every side begins with its imports and with Ray, and its seconds count from the
command.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import PRECISIONS, Timing, find_model, markdown, parser, prepared, publish, scratch_folder

METRIC, MODE = "score", "max"
LOG = "scores.jsonl"
NEAR = 0.01
STOCK = ("stock, kept", "stock")


@dataclass(frozen=True)
class Course:
    """How one search went, in seconds from its command.

    Attributes:
        first_s: To the first score.
        near_s: To the first score within 0.01 of the best that this search found.
        total_s: To the end of its last trial.
        best: The best score.
        steps: Optimizer steps of all trials.
    """

    first_s: float
    near_s: float
    total_s: float
    best: float
    steps: int

    @classmethod
    def of(cls, scores: list[tuple[float, float]], begun: float, ended: float, steps: int) -> Course:
        """From pairs of time and score, in the order of time."""
        best = max(score for _, score in scores)
        near = next(when for when, score in scores if score >= best - NEAR)
        return cls(scores[0][0] - begun, near - begun, ended - begun, best, steps)


# -- ours ------------------------------------------------------------------------------------------------------------


def search(options: argparse.Namespace, model: str, folder: Path) -> Course:
    """Run our command, and read its journal."""
    command = [sys.executable, "-m", "adept_tune.search", *task_words(options), "--model", model]
    command += ["--trials", str(options.trials), "--max-steps", str(options.max_steps)]
    command += ["--batch-size", str(options.batch_size), "--device", options.device, "--precision", options.precision]
    command += ["--space", options.space, "--finalists", "1", "--seeds", "1", "--experiment", str(folder)]
    begun = time.time()
    run(command, folder.with_suffix(".log"))
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    scores = [(e["time"], e["score"]) for e in events if e["event"] == "reported" and "score" in e]
    steps = {e["trial"]: e["step"] for e in events if e["event"] == "reported"}  # the last of each
    return Course.of(scores, begun, max(e["time"] for e in events if e["event"] == "ended"), sum(steps.values()))


def task_words(options: argparse.Namespace) -> list[str]:
    """The task and its rows, as both sides' commands have them."""
    words = ["--task", options.task]
    words += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    return words + (["--labels", options.labels] if options.labels else [])


def run(command: list[str], log: Path) -> None:
    """Run a side to its end."""
    with log.open("wb") as file:
        code = subprocess.run(command, stdout=file, stderr=file).returncode
    if code != 0:
        raise SystemExit(f"{' '.join(command)}\nended with exit code {code}:\n{log.read_text()[-2000:]}")


# -- stock Ray Tune --------------------------------------------------------------------------------------------------


def stock_search(options: argparse.Namespace, model: str, folder: Path, kept: bool) -> Course:
    """Run the stock search in a process of its own, and read what its trials noted."""
    command = [sys.executable, str(Path(__file__).resolve()), *task_words(options), "--stock-model", model]
    command += ["--stock-folder", str(folder), *(["--stock-kept"] if kept else [])]
    for name in ("trials", "max_steps", "batch_size", "device", "precision", "fraction", "space"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    folder.mkdir()
    begun = time.time()
    run(command, folder.with_suffix(".log"))
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    scores = [(line["time"], line["score"]) for line in lines if "score" in line]
    return Course.of(scores, begun, lines[-1]["time"], sum(line.get("steps", 0) for line in lines))


_kept: dict[str, Any] = {}  # the engine of a process that trains several trials


def stock_trial(config: dict[str, Any], materials: Any, settings: dict[str, Any], steps: list[int]) -> None:
    """One trial in a process of its own: train to each rung, evaluate, report."""
    import torch
    from ray import tune

    from adept_tune.backbones import short_ways
    from adept_tune.engine.build import build_engine
    from adept_tune.engine.engine import Engine

    torch.set_num_threads(1)
    engine = _kept.get("engine")
    if engine is None:
        info, device, precision = materials.info, settings["device"], settings["precision"]
        short_ways.use_short_ways = lambda model: None  # the model stays as it was loaded
        engine = build_engine(info, materials.space.method, materials.data, 1, device=device, precision=precision)
        if isinstance(engine, Engine):
            engine.graphs = None
    if settings["kept"]:
        _kept["engine"] = engine
    sizes = {"max_steps": settings["max_steps"], "batch_size": settings["batch_size"]}
    space = materials.space.at(engine.backbone.embedding_rms)
    slot = engine.join(space.config(config, **sizes, seed=0, data_seed=0))
    try:
        for before, step in zip([0, *steps], steps, strict=False):
            while engine.step_of(slot) < step:
                engine.step([slot])
            (evaluation,) = engine.evaluate([slot])
            note(settings["log"], score=evaluation.score.value, steps=step - before)
            tune.report({"step": step, METRIC: evaluation.score.value})
    finally:
        engine.leave(slot)


def note(log: str, **fields: float) -> None:
    """Append a line with the time."""
    with Path(log).open("a") as file:
        file.write(json.dumps({"time": time.time()} | fields) + "\n")


def drive_stock(options: argparse.Namespace) -> int:
    """The whole stock search, in this process."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from adept_tune.tasks import get_task
    from adept_tune.tuning.materials import gather
    from adept_tune.tuning.rungs import rung_steps
    from adept_tune.tuning.samplers import distribution
    from adept_tune.tuning.space import read_space

    materials = gather(
        options.task, options.data_dir, options.stock_model, read_space(options.space), None, options.labels
    )
    log = options.stock_folder / LOG
    settings = {name: getattr(options, name) for name in ("device", "precision", "max_steps", "batch_size")}
    settings |= {"kept": options.stock_kept, "log": str(log)}
    rungs = rung_steps(options.max_steps, get_task(options.task).plateau_steps, 3.0)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    trainable = tune.with_parameters(
        stock_trial, materials=materials, settings=settings, steps=[*rungs, options.max_steps]
    )
    share = {"cpu": 1} | ({"gpu": options.fraction} if options.device == "cuda" else {})
    space = materials.space
    tuner = tune.Tuner(
        tune.with_resources(trainable, share),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            num_samples=options.trials,
            search_alg=OptunaSearch(
                space={name: distribution(dimension) for name, dimension in space.dimensions.items()},
                metric=METRIC,
                mode=MODE,
                points_to_evaluate=[dict(point) for point in space.points],
                seed=0,
            ),
            scheduler=ASHAScheduler(
                time_attr="step", max_t=options.max_steps, grace_period=rungs[0], reduction_factor=3
            ),
            reuse_actors=options.stock_kept,
        ),
        run_config=tune.RunConfig(storage_path=str(options.stock_folder / "ray"), verbose=0),
    )
    results = tuner.fit()
    note(str(log))
    ray.shutdown()
    return 1 if results.num_errors else 0


# -- the table -------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, scratch: Path) -> str:
    """Every side once a round."""
    model = find_model(options.model, scratch).name
    courses: dict[str, list[Course]] = {name: [] for name in ("ours", *STOCK)}
    for turn in range(options.rounds):
        for name, found in courses.items():
            folder = scratch / f"{name.replace(', ', '-')}-{turn}"
            ours = name == "ours"
            course = search(options, model, folder) if ours else stock_search(options, model, folder, name == STOCK[0])
            found.append(course)
            print(f"{name}: {course}", flush=True)

    def cells(name: str) -> tuple[Any, ...]:
        fields = ("total_s", "first_s", "near_s", "best", "steps")
        timings = [Timing(tuple(getattr(course, field) for course in courses[name])) for field in fields]
        ours = Timing(tuple(course.total_s for course in courses["ours"]))
        return (name, *timings, f"{timings[0].median / ours.median:.2f}")

    near = f"within {NEAR} of its best, s"
    head = ["side", "whole search, s", "first score, s", near, "best", "trial-steps", "over ours"]
    return markdown(head, [cells(name) for name in courses])


def main() -> int:
    """Measure and print the table; or, called by itself, run one stock search."""
    p = parser(__doc__)
    p.add_argument("--task", default="demo", help="(default: %(default)s)")
    p.add_argument("--model", default="demo", help="demo, t5-small, t5-base, t5-large, or a folder (default: demo)")
    p.add_argument("--data-dir", type=Path, help="folder of the task's rows")
    p.add_argument("--labels", choices=["digits", "words"], help="label texts")
    p.add_argument("--space", default="adept-demo", help="(default: %(default)s)")
    p.add_argument("--trials", type=int, default=32, help="(default: %(default)s)")
    p.add_argument("--max-steps", type=int, default=300, help="(default: %(default)s)")
    p.add_argument("--batch-size", type=int, default=16, help="rows of a trial's step (default: %(default)s)")
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of all sides (default: %(default)s)")
    p.add_argument("--fraction", type=float, default=0.5, help="of the GPU for a stock trial (default: %(default)s)")
    p.add_argument("--stock-model", help=argparse.SUPPRESS)
    p.add_argument("--stock-folder", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--stock-kept", action="store_true", help=argparse.SUPPRESS)
    options = prepared(p.parse_args())
    if options.stock_folder is not None:
        return drive_stock(options)
    with scratch_folder() as scratch:
        table = measure(options, scratch)
    head = f"{options.task}, {options.trials} trials of up to {options.max_steps} steps of {options.batch_size} rows."
    publish("A whole search", [head, table], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
