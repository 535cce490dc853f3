"""Small files of rows in every format, and tasks to read them with."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adept_tune.tasks import Task

TASK = Task(
    name="toy",
    columns=("sentence",),
    template="sentence: {sentence}",
    label_sets={"digits": ("0", "1"), "words": ("no", "yes")},
    split_rule="official",
    metric="accuracy",
)

SENTENCES = ["the cat sat", "the dog ran", "a cat was sad", "very good", "not very good", "under a tree"]
ROWS = {"sentence": SENTENCES, "label": [1, 0, 1, 0, 0, 1]}


def write(path: Path, columns: Mapping[str, list[Any]]) -> Path:
    """Write columns as a file of the kind that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
    else:  # tsv as GLUE has it: quotes are ordinary characters
        lines = ["\t".join(columns), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_splits(folder: Path, suffix: str = "jsonl", **splits: Mapping[str, list[Any]]) -> Path:
    """Write train, validation and test, with the same rows by default; return the folder above."""
    for split in ("train", "validation", "test"):
        write(folder / f"{split}.{suffix}", splits.get(split, ROWS))
    return folder.parent
