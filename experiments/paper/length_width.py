"""Prompt length against width at equal budget: what a number of parameters buys as prompt, and what as offset.

Length and width are fixed in each line, and the learning rates are searched. Width 0 is the longest prompt that the
budget admits beside the method's biases; prompt tuning is the line without offsets.
"""

import argparse
import sys

from cells import Cell
from command import Asked, Study, main, num_scored

from adept_tune.backbones import inspect_backbone
from adept_tune.errors import SpecError
from adept_tune.methods import INPUT_SIDE
from adept_tune.tasks import TASKS

BUDGET_TOKENS = 100
LENGTHS = "0,20,40,60,80,100"


def flags(parser: argparse.ArgumentParser) -> None:
    """The budget, and the lengths to try."""
    parser.add_argument(
        "--budget-tokens", type=int, default=BUDGET_TOKENS, help="budget in prompt tokens (default: %(default)s)"
    )
    parser.add_argument("--lengths", default=LENGTHS, help="prompt lengths (default: %(default)s)")


def sizes(method: str, lengths: list[int], tokens: int, d_model: int, source_length: int) -> list[tuple[int, int]]:
    """Lengths and the widths that fill the budget; the longest prompt that fits, where width 0 is not among them."""
    budget = tokens * d_model
    if "width" not in INPUT_SIDE[method].parameters.values():
        return [(tokens, 0)]

    def width(length: int) -> int | None:
        return INPUT_SIDE[method].width_within(budget, length, d_model, source_length)

    found = [(length, fits) for length in lengths if (fits := width(length)) is not None]
    if all(fits > 0 for _, fits in found):
        longest = max(length for length in range(tokens + 1) if width(length) is not None)
        found.append((longest, width(longest) or 0))
    return found


def cells(asked: Asked) -> list[Cell]:
    """A line a method, length and width; a column a task."""
    if asked.model is None:
        raise SpecError("--model: give one; the budget is so many times the width of its embeddings")
    try:
        lengths = sorted({int(length) for length in asked.own.lengths.split(",")})
    except ValueError:
        raise SpecError(f"--lengths {asked.own.lengths}: give whole numbers, such as {LENGTHS}") from None
    promptless = [method for method in asked.methods if method not in INPUT_SIDE]
    if promptless:
        raise SpecError(
            f"--methods {','.join(promptless)}: have no prompt whose length could be weighed against a width"
        )
    d_model, found = inspect_backbone(asked.model).d_model, []
    for task in asked.tasks:
        for method in asked.methods:
            parameters = INPUT_SIDE[method].parameters
            source_length = TASKS[task].max_source_length
            for length, width in sizes(method, lengths, asked.own.budget_tokens, d_model, source_length):
                fixed: dict[str, float] = {"prompt_length": length}
                fixed |= {name: width for name, setting in parameters.items() if setting == "width"}
                fixed |= {"prompt_lr": 0.3} if length == 0 else {}  # what moves nothing is not searched
                words = ["--task", task, "--method", method, *asked.model_words, *asked.data_words]
                words += [part for name, value in fixed.items() for part in ("--set", f"{name}={value}")]
                found.append(Cell(f"{method} m={length} r={width}", task, tuple(words), num_rows=num_scored(task)))
    return found


STUDY = Study(
    name="length_width",
    title="Prompt length against width at equal budget",
    about="Spend one budget of parameters on prompt or offset; every line fixes length and width, and the rates are "
    "searched.",
    tasks=("sst2", "mrpc", "rte", "cola"),
    averages={"all": ("sst2", "mrpc", "rte", "cola")},
    methods=("adept", "dept", "prompt-tuning"),
    cells=cells,
    flags=flags,
    head="line",
    compares_published=False,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
