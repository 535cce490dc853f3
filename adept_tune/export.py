"""`python -m adept_tune.export`: write an adapter so that transformers and PEFT load it without this package."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adept_tune.cli import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, and give the exit code: 0 done, 1 the folder cannot be written, 2 bad input."""
    arguments = parser().parse_args(argv)

    def run() -> int:
        from adept_tune.adapter import load_adapter
        from adept_tune.portable import export

        export(load_adapter(arguments.adapter, arguments.model), arguments.to, arguments.fold)
        print(arguments.to)
        return 0

    return guarded(run)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m adept_tune.export",
        description="Write an adapter as a PEFT adapter, one of ADePT with the model it is folded into, one of full "
        "fine-tuning as a model.",
    )
    p.add_argument("--adapter", type=Path, required=True, help="folder with adapter.json and adapter.safetensors")
    p.add_argument("--to", type=Path, required=True, help="folder to write; a folded model comes into its folder model")
    p.add_argument("--fold", action="store_true", help="add the offsets of ADePT to the model's embedding table")
    p.add_argument("--model", help="folder or Hub name of the backbone, if it has moved")
    return p


if __name__ == "__main__":
    sys.exit(main())
