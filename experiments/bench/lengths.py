"""Count how many tokens the inputs of real tasks have, for benchmarks that draw rows of such lengths.

    python experiments/bench/lengths.py --model DIR --data-dir DIR --tasks cola rte

writes `lengths.json`: task -> source length -> training rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from workload import LENGTHS

from adept_tune.errors import AdeptError
from adept_tune.tuning.materials import gather
from adept_tune.tuning.space import read_space


def main(argv: list[str] | None = None) -> int:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of a T5")
    parser.add_argument("--data-dir", type=Path, help="folder of the tasks' rows (default: the Hub)")
    parser.add_argument("--tasks", nargs="+", default=["cola", "rte"], help="(default: %(default)s)")
    options = parser.parse_args(argv)
    found = {}
    try:
        for task in options.tasks:
            data = gather(task, options.data_dir, options.model, read_space("adept"), None, None).data
            counts = Counter(data.train.sources.lengths.tolist())
            found[task] = {str(length): counts[length] for length in sorted(counts)}
    except AdeptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    LENGTHS.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
