"""`python -m adept_tune.search`: search the hyper-parameters of a method for one task on one language model."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adept_tune.cli import guarded

if TYPE_CHECKING:
    from adept_tune.tuning.search import Request


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, search, and give the exit code.

    Returns:
        0 done, 1 stopped by a full disk or a lost broker, 2 bad input, 3 no trial finished, 130 interrupted.
    """
    arguments = parser().parse_args(argv)

    def run() -> int:
        from adept_tune.console import Console
        from adept_tune.tuning.comparison import run_comparison
        from adept_tune.tuning.search import run_search

        several = "," in (arguments.method or "")
        return (run_comparison if several else run_search)(request(arguments), Console())

    return guarded(run)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m adept_tune.search",
        description="Search the hyper-parameters of ADePT (or of LoRA and others) for one task on one model.",
    )
    what = p.add_argument_group("what")
    what.add_argument(
        "--task",
        required=True,
        help="name of a task, such as cola, or demo, which is embedded (a wrong one lists all), or your own .yaml file",
    )
    what.add_argument(
        "--method", help="adept (default), lora, ...; a wrong one lists all; several, with commas, are compared"
    )
    what.add_argument("--model", help="Hub name or folder (default google-t5/t5-base with a GPU, t5-small without)")
    what.add_argument(
        "--data-dir", type=Path, help="folder with TASK/SPLIT.{jsonl,csv,tsv,parquet} (default: the task's own)"
    )
    what.add_argument(
        "--protocol", default="ours", choices=["ours", "paper"], help="paper: the published code's faults"
    )
    what.add_argument("--allow-code-execution", action="store_true", help="run programs that the model writes (mbpp)")
    what.add_argument("--labels", choices=["digits", "words"], help="label texts (default digits, as published)")
    what.add_argument("--space", help="name or .yaml file of a search space (default: METHOD-TASK, else METHOD)")
    what.add_argument("--init-from", type=Path, metavar="DIR", help="adapter of the same method that trials start from")
    effort = p.add_argument_group("how much")
    effort.add_argument("--trials", type=int, help="configurations to try (default: what fits the time budget)")
    effort.add_argument("--max-steps", type=int, help="optimizer steps of a full trial (default: what fits)")
    effort.add_argument("--batch-size", type=int, help="rows of a step (default 32, as published; demo: 16)")
    effort.add_argument(
        "--time-budget",
        help="wall time for everything, e.g. 90m, 8h (default 1h, 8h with a GPU; none with --trials and --max-steps)",
    )
    effort.add_argument("--finalists", type=int, default=3, help="configurations to retrain (default 3)")
    effort.add_argument("--seeds", type=int, default=3, help="retrainings of each finalist (default 3)")
    how = p.add_argument_group("how")
    how.add_argument("--scheduler", default="asha", choices=["asha", "hyperband", "median", "none"])
    how.add_argument("--sampler", default="tpe", choices=["tpe", "random", "gp", "grid"])
    how.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="fix a trial setting or an option")
    where = p.add_argument_group("where")
    where.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    where.add_argument(
        "--precision", default="auto", help="of the backbone: fp32, bf16, or auto (default): bf16 where it is fast"
    )
    where.add_argument("--trials-per-gpu", default="auto", help="trials fused on a device, or auto (default)")
    where.add_argument("--address", help="local, auto or a Ray cluster's address (default: RAY_ADDRESS, else local)")
    where.add_argument("--experiment", type=Path, help="folder of this search (default runs/TASK-METHOD-TIME)")
    where.add_argument("--storage", help="folder or fsspec URI for trial states (default: in the experiment)")
    where.add_argument("--tracking-uri", help="MLflow server (default: MLFLOW_TRACKING_URI, else a database)")
    p.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="DIR",
        help="go on with an interrupted search, or extend a finished one (default: the newest of the same command)",
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan and its cost after a short probe, then stop")
    p.add_argument("--verbose", action="store_true", help="let Ray's and MLflow's own messages through")
    return p


def request(arguments: argparse.Namespace) -> "Request":
    """The parsed arguments as a request.

    Raises:
        SpecError: A value that argparse cannot judge.
    """
    from adept_tune.tuning.options import precision_or_auto, split_settings, wall_time_s, whole_number_or_auto
    from adept_tune.tuning.search import Request

    fixed, options = split_settings(arguments.set)
    return Request(
        task=arguments.task,
        protocol=arguments.protocol,
        allow_code_execution=arguments.allow_code_execution,
        method=arguments.method,
        model=arguments.model,
        data_dir=arguments.data_dir,
        labels=arguments.labels,
        space=arguments.space,
        init_from=arguments.init_from,
        fixed=fixed,
        trials=arguments.trials,
        max_steps=arguments.max_steps,
        batch_size=arguments.batch_size,
        scheduler=arguments.scheduler,
        sampler=arguments.sampler,
        finalists=arguments.finalists,
        seeds=arguments.seeds,
        seed=arguments.seed,
        slots=whole_number_or_auto("--trials-per-gpu", arguments.trials_per_gpu),
        time_budget_s=wall_time_s(arguments.time_budget),
        address=arguments.address or os.environ.get("RAY_ADDRESS") or "local",
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None,
        experiment=arguments.experiment,
        device=arguments.device,
        precision=precision_or_auto(arguments.precision),
        resume=arguments.resume,
        dry_run=arguments.dry_run,
        verbose=arguments.verbose,
        **options,
    )


if __name__ == "__main__":
    sys.exit(main())
