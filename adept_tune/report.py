"""`python -m adept_tune.report`: a page with the plots and tables of a search."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adept_tune.cli import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write the report, and give the exit code: 0 done, 2 bad input."""
    arguments = parser().parse_args(argv)

    def run() -> int:
        from adept_tune.errors import SpecError
        from adept_tune.tuning.report import write_report

        try:
            written = write_report(arguments.experiment)
        except OSError as error:
            raise SpecError(f"--experiment {arguments.experiment}: cannot write there ({error.strerror})") from error
        for path in written:
            print(path)
        return 0

    return guarded(run)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m adept_tune.report",
        description="Write report.html and its plots into an experiment folder, finished or not.",
    )
    p.add_argument("--experiment", type=Path, required=True, help="folder of the search")
    return p


if __name__ == "__main__":
    sys.exit(main())
