"""A step of ADePT as its authors publish it, against ours: one trial, the same model, batch and precision.

Theirs, written anew from the paper's equations and its published settings: every input padded to 256 tokens, the model
as transformers has it, called whole with labels (so logits over the vocabulary at every target position), AdamW with a
group for each of the two learning rates, clipping, and a linear schedule. Ours: the engine with one trial, on a CPU a
pass for each thread side by side.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from workload import (
    PADDED,
    PRECISIONS,
    Timing,
    find_model,
    in_turns,
    make_data,
    make_engine,
    markdown,
    most_lanes,
    parser,
    prepared,
    publish,
    scratch_folder,
    seconds,
    stock_model,
    trial,
    warm_up_steps,
)

from adept_tune.engine.config import TrialConfig
from adept_tune.engine.lanes import Lanes
from adept_tune.engine.order import batch_rows
from adept_tune.tasks.tokens import Ragged, TaskData, pad

SOURCE_LENGTH = 256


class PaddedAdept(nn.Module):
    """X' = [P; E + ReLU(drop(E W1 + b1)) W2 + b2] in front of a whole model."""

    def __init__(self, model: Any, config: TrialConfig) -> None:
        super().__init__()
        d_model = model.config.d_model
        self.model = model
        self.prompt = nn.Parameter(torch.randn(config.prompt_length, d_model, device=model.device))
        self.down = nn.Linear(d_model, config.width, device=model.device)
        self.up = nn.Linear(config.width, d_model, device=model.device)
        self.drop = nn.Dropout(config.dropout)
        nn.init.zeros_(self.up.weight)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch; ids and mask are `(rows, 256)`."""
        tokens = self.model.get_input_embeddings()(ids).float()
        shifted = tokens + self.up(torch.relu(self.drop(self.down(tokens))))
        prompts = self.prompt.expand(len(ids), -1, -1)
        embeds = torch.cat([prompts, shifted], dim=1).to(self.model.dtype)
        mask = torch.cat([mask.new_ones(len(ids), len(self.prompt)), mask], dim=1)
        loss: Tensor = self.model(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss
        return loss


def padded(ragged: Ragged, rows: Any, fill: int, length: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows filled up to a fixed length."""
    ids, mask = (torch.from_numpy(array) for array in pad(ragged, rows, fill))
    room = (0, length - ids.shape[1])
    filled = nn.functional.pad(ids, room, value=fill), nn.functional.pad(mask, room, value=False)
    return filled[0].to(device), filled[1].to(device)


def their_step(model: Any, data: TaskData, config: TrialConfig, device: str) -> Callable[[], None]:
    """A function that takes one optimizer step the published way."""
    adapter = PaddedAdept(model, config)
    adapter.train()
    model.eval()  # as ours; the published trainer leaves the model's own dropout on, which costs a little more
    rest = [*adapter.down.parameters(), *adapter.up.parameters()]
    groups = [{"params": [adapter.prompt], "lr": config.prompt_lr}, {"params": rest, "lr": config.offset_lr}]
    optimizer = torch.optim.AdamW(groups, eps=config.epsilon, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate_factor)
    trained = [adapter.prompt, *rest]
    step = 0

    def take() -> None:
        nonlocal step
        rows = batch_rows(0, step, config.batch_size, len(data.train))
        ids, mask = padded(data.train.sources, rows, data.pad_id, SOURCE_LENGTH, device)
        labels, _ = padded(data.train.targets["digits"], rows, -100, 2, device)
        adapter(ids, mask, labels).backward()
        nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step += 1

    return take


def timed(lanes: Lanes, num_lanes: int, take: Callable[[], object], options: Namespace) -> float:
    """Seconds of a step, with passes in so many lanes."""
    lanes.split(num_lanes)
    for _ in range(warm_up_steps(options.device)):
        take()
    return seconds(options.device, take, options.steps)


def main() -> int:
    """Measure and print the table."""
    p = parser(__doc__)
    p.add_argument("--models", nargs="+", default=["t5-small"], help="demo, t5-small, t5-base, t5-large, or folders")
    p.add_argument("--lengths", default="cola", help="cola or rte (default: %(default)s)")
    p.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="(default: both)")
    p.add_argument("--batch-size", type=int, default=16, help="rows of a step (default: %(default)s)")
    p.add_argument("--steps", type=int, default=3, help="of a measurement (default: %(default)s)")
    options = prepared(p.parse_args())
    if options.lengths == PADDED:
        p.error(f"--lengths {PADDED}: theirs is always padded; give cola or rte")
    rows = []
    with scratch_folder() as scratch:
        for model in options.models:
            info = find_model(model, scratch)
            data, config = make_data(info, options.lengths), trial(info, options.batch_size)
            for precision in options.precisions:
                engine = make_engine(info, data, 1, options.device, precision)
                stock = stock_model(info, options.device, precision)
                theirs = their_step(stock, data, config, options.device)
                ours = partial(engine.step, [engine.join(config)])
                sides: dict[str, Callable[[], float]] = {
                    "theirs": partial(timed, engine.limits.lanes, 1, theirs, options),  # with all threads
                    "ours": partial(timed, engine.limits.lanes, most_lanes(options), ours, options),
                }
                timings: dict[str, Timing] = in_turns(options.rounds, sides)
                ratio = f"**{timings['theirs'].median / timings['ours'].median:.2f}**"
                rows.append((f"{Path(model).name}, {precision}", timings["theirs"], timings["ours"], ratio))
    head = f"Lengths of {options.lengths}, m = {config.prompt_length}, batch {options.batch_size}; seconds a step."
    publish("Against the published padding", [head, markdown(["model", "theirs", "ours", "ratio"], rows)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
