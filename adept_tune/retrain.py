"""`python -m adept_tune.retrain`: the retraining of a search alone: again, or on from where it was interrupted."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adept_tune.cli import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, retrain, and give the exit code.

    Returns:
        0 done, 1 stopped by a full disk or a lost broker, 2 bad input, 3 nothing to retrain, 130 interrupted.
    """
    arguments = parser().parse_args(argv)

    def run() -> int:
        from adept_tune.console import Console
        from adept_tune.tuning.search import run_retrain

        address = arguments.address or os.environ.get("RAY_ADDRESS") or "local"
        return run_retrain(
            arguments.experiment,
            arguments.finalists,
            arguments.seeds,
            arguments.tracking_uri,
            address,
            arguments.verbose,
            Console(),
        )

    return guarded(run)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m adept_tune.retrain",
        description="Retrain the best configurations of a search over seeds, test the winner, export it.",
    )
    p.add_argument("--experiment", type=Path, required=True, help="folder of the search")
    p.add_argument("--finalists", type=int, help="configurations to retrain (default: as in the search)")
    p.add_argument("--seeds", type=int, help="retrainings of each (default: as in the search)")
    p.add_argument("--tracking-uri", help="MLflow server or database (default: as in the search)")
    p.add_argument("--address", help="local, auto or a Ray cluster's address (default: RAY_ADDRESS, else local)")
    p.add_argument("--verbose", action="store_true", help="let Ray's and MLflow's own messages through")
    return p


if __name__ == "__main__":
    sys.exit(main())
