"""What the parts of a pass cost that are ours, against those they stand in for: both ways of each, there and back.

attention   `backbones.attention` (products) against torch's fused kernel, in bf16, of rows and heads as T5's
norm        `backbones.norm` against transformers' `T5LayerNorm`
pass        forward and backward of a whole model: as transformers has it, as we load it, and (--compile, which takes
            minutes) as torch.compile makes it of the one that we load, with shapes left open
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from workload import (
    DTYPES,
    PRECISIONS,
    find_model,
    in_turns,
    markdown,
    parser,
    prepared,
    publish,
    scratch_folder,
    seconds,
    stock_model,
)

from adept_tune.backbones import Backbone, BackboneInfo, load_backbone
from adept_tune.backbones.attention import attend
from adept_tune.backbones.load import Precision
from adept_tune.backbones.norm import FrozenNorm

# Rows, heads, queries, keys and width of a head.
ATTENTIONS = {
    "demo": (50, 4, 40, 40, 32),
    "T5-small, CoLA": (28, 8, 72, 72, 64),
    "T5-small, 256 tokens": (8, 8, 256, 256, 64),
    "T5-small, label on source": (28, 8, 3, 72, 64),
    "T5-base, CoLA": (28, 12, 72, 72, 64),
}
NORMS = {"demo": (2048, 128), "T5-small": (2048, 512), "T5-base": (2048, 768)}
PASSES = {"demo": [(40, 30), (28, 50), (60, 23)], "t5-small": [(28, 75), (20, 95), (30, 68)]}  # rows and tokens


def there_and_back(answer: Callable[[], Tensor], inputs: Sequence[Tensor], times: int, device: str) -> float:
    """Milliseconds of an answer and its gradients."""
    gradient = torch.randn_like(answer())
    return 1000 * seconds(device, lambda: torch.autograd.grad(answer(), inputs, gradient), times)


def attentions(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Callable[[], float]]:
    """Both attentions, with T5's bias and a mask of padding."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, queries, keys, width = shape

    def states(length: int) -> Tensor:
        made = torch.randn(rows, length, heads, width, device=device, dtype=dtype)
        return made.transpose(1, 2).detach().requires_grad_()

    inputs = [states(queries), states(keys), states(keys)]
    mask = torch.ones(rows, 1, 1, keys, dtype=torch.bool, device=device)
    mask[::2, ..., -1] = False
    bias = torch.randn(1, heads, queries, keys, device=device, dtype=dtype)
    layer = SimpleNamespace(is_causal=False)

    def side(way: Callable[..., tuple[Tensor, None]]) -> float:
        def answer() -> Tensor:
            return way(layer, *inputs, mask, scaling=1.0, position_bias=bias)[0]

        return there_and_back(answer, inputs, 10, device)

    return {"stock": partial(side, sdpa_attention_forward), "ours": partial(side, attend)}


def norms(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Callable[[], float]]:
    """Both norms."""
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    hidden = torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    def side(kind: type[T5LayerNorm]) -> float:
        layer = kind(shape[-1]).to(device, dtype).requires_grad_(False)
        return there_and_back(lambda: layer(hidden), [hidden], 20, device)

    return {"stock": partial(side, T5LayerNorm), "ours": partial(side, FrozenNorm)}


def whole_passes(
    info: BackboneInfo, name: str, precision: Precision, device: str, compiled: bool
) -> dict[str, Callable[[], float]]:
    """Passes of a model; each side makes some of different shapes."""
    ours, stock = load_backbone(info, device, precision), stock_model(info, device, precision)
    batches = []
    for rows, length in PASSES[name]:
        embeds = torch.randn(rows, length, ours.d_model, device=device).requires_grad_()
        mask = torch.ones(rows, length, dtype=torch.bool, device=device)
        mask[::2, -1] = False
        target = torch.full((rows, 2), 5, device=device)
        batches.append((embeds, mask, target, torch.ones(target.shape, dtype=torch.bool)))

    def side(forward: Callable[..., Tensor]) -> float:
        def run() -> None:
            for embeds, *others in batches:
                torch.autograd.grad(forward(embeds, *others).sum(), embeds)

        run()
        return 1000 * seconds(device, run, 2) / len(batches)

    ways: dict[str, Callable[[], float]] = {
        "stock": partial(side, ours.over(stock).target_nll),
        "ours": partial(side, ours.target_nll),
    }
    return ways | ({"compiled": partial(side, torch.compile(dense(ours), dynamic=True))} if compiled else {})


def dense(backbone: Backbone) -> Callable[..., Tensor]:
    """`target_nll` where all of the target is real, which the compiler can do in one graph."""

    def target_nll(embeds: Tensor, mask: Tensor, target: Tensor, _: Tensor) -> Tensor:
        model = backbone.model
        read = model.encoder(inputs_embeds=embeds.to(backbone.dtype), attention_mask=mask).last_hidden_state
        begun = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1)
        decoded = model.decoder(
            input_ids=begun, encoder_hidden_states=read, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(decoded * (model.config.d_model**-0.5 if model.config.tie_word_embeddings else 1.0))
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")

    return target_nll


def main() -> int:
    """Measure and print the tables."""
    p = parser(__doc__)
    p.add_argument("--models", nargs="+", choices=PASSES, default=list(PASSES), help="of whole passes (default: all)")
    p.add_argument("--compile", action="store_true", help="torch.compile as well")
    options = prepared(p.parse_args())
    head, rows = ["there and back", "stock, ms", "ours, ms", "ours is faster"], []

    def measure(what: str, sides: dict[str, Callable[[], float]]) -> None:
        timings = in_turns(options.rounds, sides)
        ratios = [timings["stock"].median / timings[name].median for name in list(sides)[1:]]
        rows.append([what, *(str(timing) for timing in timings.values()), *(f"{ratio:.2f}" for ratio in ratios)])
        print(rows[-1], flush=True)

    for precision in PRECISIONS:
        for name, shape in ATTENTIONS.items() if precision == "bf16" else ():
            measure(f"attention, {name}, {precision}", attentions(shape, DTYPES[precision], options.device))
        for name, dims in NORMS.items():
            measure(f"norm, {name}, {precision}", norms(dims, DTYPES[precision], options.device))
    parts = [markdown(head, rows)]
    rows.clear()
    with scratch_folder() as scratch:
        for precision in PRECISIONS:
            for name in options.models:
                sides = whole_passes(find_model(name, scratch), name, precision, options.device, options.compile)
                measure(f"pass, {name}, {precision}", sides)
    if options.compile:
        head = [*head[:3], "compiled, ms", head[3], "compiled is faster"]
    publish("What the parts of a pass cost", [*parts, markdown(head, rows)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
