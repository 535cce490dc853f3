"""`python -m adept_tune.predict`: answer texts or rows with an exported adapter."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adept_tune.cli import guarded
from adept_tune.errors import TaskError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, predict, print one JSON object a row, and give the exit code: 0 done, 2 bad input."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: predict(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m adept_tune.predict",
        description="Answer texts or rows with an exported adapter; one JSON object a row on standard output.",
    )
    p.add_argument("--adapter", type=Path, required=True, help="folder with adapter.json and adapter.safetensors")
    rows = p.add_mutually_exclusive_group(required=True)
    rows.add_argument("--text", action="append", help="a text, for tasks of one column; may be repeated")
    rows.add_argument("--file", type=Path, help="JSON lines with the task's columns; with labels, a score is printed")
    p.add_argument("--allow-code-execution", action="store_true", help="score programs that the model wrote (mbpp)")
    p.add_argument("--model", help="folder or Hub name of the backbone, if it has moved")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return p


def predict(arguments: argparse.Namespace) -> int:
    """Run a parsed command.

    Raises:
        AdeptError: The adapter, the rows or the model cannot be used.
    """
    rows = arguments.text if arguments.text else read_rows(arguments.file)
    from adept_tune.adapter import load_adapter

    adapter = load_adapter(arguments.adapter, arguments.model, arguments.device)
    labelled = arguments.file is not None and all(set(adapter.needed) <= set(row) for row in rows)
    if labelled and adapter.runs_code and not arguments.allow_code_execution:
        print("not scored, as that runs the predicted programs: give --allow-code-execution for it", file=sys.stderr)
        labelled = False
    if labelled:
        evaluation = adapter.score(rows, arguments.allow_code_execution)
        predictions = list(evaluation.texts)
    else:
        predictions = adapter.predict(rows)
    for row, prediction in zip(rows, predictions, strict=True):
        print(json.dumps((row if isinstance(row, dict) else {"text": row}) | {"prediction": prediction}))
    if labelled:
        for metric, score in {adapter.description["task"]["metric"]: evaluation.score, **evaluation.also}.items():
            print(
                f"{metric} {score.value!r} (standard error {score.standard_error:.4f}) over {len(rows)} rows",
                file=sys.stderr,
            )
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file.

    Raises:
        TaskError: The file cannot be read, or a line is not a JSON object; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line separators raw
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--file {path}: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise TaskError(f"--file {path}, line {number}: not a JSON object: {line[:80]}")
        rows.append(row)
    if not rows:
        raise TaskError(f"--file {path}: no rows")
    return rows


if __name__ == "__main__":
    sys.exit(main())
