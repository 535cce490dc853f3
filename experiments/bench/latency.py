"""How long an answer takes: prompt tuning, DePT, ADePT and folded ADePT at equal parameters, for one row and for many.

Each side reads the same rows and decodes a label. Weights are random, which takes the same time as trained ones. ADePT
folded into the embedding table is prompt tuning with its shorter prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from workload import (
    Timing,
    add_workload,
    find_model,
    in_turns,
    make_data,
    markdown,
    parser,
    prepared,
    publish,
    scratch_folder,
    seconds,
)

from adept_tune.backbones import load_backbone, load_tokenizer
from adept_tune.backbones.base import Backbone
from adept_tune.backbones.codec import TokenizerCodec
from adept_tune.engine.reading import Reader, Trained
from adept_tune.methods import INPUT_SIDE
from adept_tune.methods.base import Sizes
from adept_tune.tasks.tokens import Ragged, TaskData

BASELINE = "prompt tuning"
# Side -> method, share of the prompt-tuning baseline's tokens that the prompt has. The rest goes into the width.
SIDES = {
    BASELINE: ("prompt-tuning", 1.0),
    "DePT": ("dept", 0.4),
    "ADePT": ("adept", 0.6),
    "ADePT, folded": ("prompt-tuning", 0.6),
}


def reader_of(
    method_name: str, prompt_length: int, budget: int, backbone: Backbone, codec: TokenizerCodec, data: TaskData
) -> tuple[Reader, Trained, int]:
    """A reader with random tensors of a method within a budget, and how many parameters they are."""
    method = INPUT_SIDE[method_name]
    length = data.max_source_length
    width = method.width_within(budget, prompt_length, backbone.d_model, length) or 0
    sizes = Sizes(prompt_length, width, backbone.d_model, length)
    tensors = {name: torch.randn(sizes.of(axes)) for name, axes in method.axes.items()}
    reader = Reader(backbone, method, codec, data.metric, data.label_sets, data.label_texts, data.pad_id)
    return reader, Trained.of_one(tensors, sizes, "digits", backbone.device), method.num_parameters(sizes)


def main() -> int:
    """Measure and print the table."""
    p = parser(__doc__)
    add_workload(p, "t5-small")
    p.add_argument("--prompt", type=int, default=100, help="tokens of prompt tuning (default: %(default)s)")
    p.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32], help="rows at once (default: 1 32)")
    p.add_argument("--times", type=int, default=20, help="answers of a measurement (default: %(default)s)")
    options = prepared(p.parse_args())
    with scratch_folder() as scratch:
        info = find_model(options.model, scratch)
        data = make_data(info, options.lengths)
        backbone, codec = load_backbone(info, options.device, options.precision), TokenizerCodec(load_tokenizer(info))
    budget = options.prompt * info.d_model
    made = {
        name: reader_of(method, round(share * options.prompt), budget, backbone, codec, data)
        for name, (method, share) in SIDES.items()
    }
    columns: dict[int, dict[str, Timing]] = {}
    for batch_size in options.batch_sizes:
        batches = [data.train.sources.take(np.arange(i, i + batch_size)) for i in range(options.times)]

        def answer_all(name: str, batches: list[Ragged] = batches) -> float:
            reader, trained, _ = made[name]
            return seconds(options.device, lambda: [reader.decode(trained, rows) for rows in batches]) / len(batches)

        sides: dict[str, Callable[[], float]] = {name: (lambda n=name: answer_all(n)) for name in made}  # type: ignore[misc]
        in_turns(1, sides)
        columns[batch_size] = in_turns(options.rounds, sides)
    rows = []
    for name, (_, _, parameters) in made.items():
        cells = [name, f"{parameters:,}"]
        for timings in columns.values():
            ms = Timing(tuple(1000 * value for value in timings[name].values))
            cells += [str(ms), f"{timings[name].median / timings[BASELINE].median:.2f}"]
        rows.append(cells)
    head = ["side", "parameters"]
    for batch_size in columns:
        head += [f"ms, {batch_size} rows" if batch_size > 1 else "ms, 1 row", f"of {BASELINE}"]
    where = f"{Path(options.model).name}, lengths of {options.lengths}, {options.precision}."
    publish("How long an answer takes", [where, markdown(head, rows)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
