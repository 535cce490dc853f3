"""Does one range of prompt rates serve families of models whose embeddings differ in scale? Sweeps over rates, told as
multiples of the embeddings' root mean square.

Families: the demonstration's T5; the same T5 before its embeddings were scaled up, function unchanged; a GPT-2 and a
Llama of its size, pretrained here on its corpus (once; --models keeps them); with --real, a folder with a T5 and rows
of SST-2. All rates and seeds of a family train fused, without Ray. The test half is never read.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, T5ForConditionalGeneration

from adept_tune.backbones.load import best_precision
from adept_tune.engine.build import build_engine
from adept_tune.errors import AdeptError
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.retrain import Spread
from adept_tune.tuning.samplers import derive_seed
from adept_tune.tuning.search import TOKENS_PER_PASS
from adept_tune.tuning.space import SpaceFile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "demo"))

import make_demo  # noqa: E402

RATES = (0.0002, 0.0006, 0.002, 0.006, 0.02, 0.06, 0.2, 0.6, 2.0)
SEED = 77_011  # of no search
PUBLISHED_FFN_LR = 1e-4


@dataclass(frozen=True)
class Family:
    """A model, the task it is tuned to, and the size of a run.

    Attributes:
        name: As the table has it.
        task: Its name.
        model: Folder.
        data_dir: Folder of rows; None for the package's.
        labels: Which texts stand for the labels.
        prompt_length: Tokens.
        seeds: Runs of each rate.
        max_steps: Of a run.
    """

    name: str
    task: str
    model: Path
    data_dir: Path | None
    labels: str
    prompt_length: int
    seeds: int
    max_steps: int


# -- decoders of the demonstration's corpus ---------------------------------------------------------------------------


def make_decoder(kind: str, vocab_size: int) -> Any:
    """A decoder of about the demonstration's size, as transformers starts it."""
    torch.manual_seed(make_demo.PRETRAINING_SEED)
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "gpt2":
        rest = {"n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=128, n_layer=4, n_head=4, **rest, **ids))
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=256, **sizes, **ids))


def pretrain(kind: str, folder: Path, steps: int) -> None:
    """Train a decoder on the mixture of the demonstration's T5: named tasks with their answers, and plain documents."""
    words = make_demo.vocabulary()
    encode = make_demo.Encoder(words)
    model, rng = make_decoder(kind, len(words)).train(), random.Random(make_demo.PRETRAINING_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    begun = time.monotonic()
    for step in range(1, steps + 1):
        lr = make_demo.PEAK_LR * min(1.0, step / make_demo.WARMUP_STEPS) * (1 - (step - 1) / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        rows, labels = [], []
        for _ in range(make_demo.BATCH_ROWS):
            named = rng.random() < make_demo.TASK_SHARE
            source, target = make_demo.supervised(rng) if named else ([], make_demo.document(rng))
            asked = [*(encode.ids[word] for word in source), 1] if named else [1]
            answer = [*(encode.ids[word] for word in target), 1]
            rows.append(asked + answer)
            labels.append([-100] * len(asked) + answer)
        ids = make_demo.pad_rows(rows, 0)
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=make_demo.pad_rows(labels, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step == steps:
            print(f"{kind}: step {step}/{steps}, loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s", flush=True)
    model.eval().save_pretrained(folder)
    make_demo.make_tokenizer(words).save_pretrained(folder)


def unscaled(folder: Path) -> None:
    """The demonstration's T5 with its embeddings as pretraining left them."""
    model = T5ForConditionalGeneration.from_pretrained(make_demo.DEMO_DIR / "model", dtype=torch.float32)
    make_demo.rescale(model, 1 / 8)
    model.save_pretrained(folder)
    make_demo.make_tokenizer(make_demo.vocabulary()).save_pretrained(folder)


def families(options: argparse.Namespace) -> list[Family]:
    """What is swept; models that are not there yet are made."""

    def demonstration(name: str, model: Path) -> Family:
        sizes = options.prompt_length, options.seeds, options.max_steps
        return Family(name, "demo", model, None, "digits", *sizes)

    found = [demonstration("T5, demonstration", make_demo.DEMO_DIR / "model")]
    for name, kind in (("the same, embeddings of pretraining", "unscaled"), ("GPT-2", "gpt2"), ("Llama", "llama")):
        folder = options.models / kind
        if not (folder / "config.json").exists():
            if kind == "unscaled":
                unscaled(folder)
            else:
                pretrain(kind, folder, options.pretraining_steps)
        found.append(demonstration(name, folder))
    if options.real is not None:
        model, data = options.real / "flan-t5-small", options.real / "data"
        found.append(Family("flan-t5-small, SST-2", "sst2", model, data, "words", 20, 1, 120))
    return found


# -- sweeps -----------------------------------------------------------------------------------------------------------


def prepared(family: Family, method: str) -> Materials:
    """Task, rows, model and a space with one rate to search."""
    parameters: dict[str, Any] = {
        "prompt_length": family.prompt_length,
        "relative_prompt_lr": {"low": RATES[0], "high": RATES[-1], "log": True},
    }
    if method == "adept":
        parameters |= {"ffn_width": 3, "ffn_lr": PUBLISHED_FFN_LR}
    file = SpaceFile(method=method, parameters=parameters)
    return gather(family.task, family.data_dir, str(family.model), file, None, family.labels)


def sweep(family: Family, method: str) -> tuple[float, list[Spread]]:
    """The embeddings' scale, and the validation score at each rate."""
    materials = prepared(family, method)
    engine = build_engine(
        materials.info,
        materials.space.method,
        materials.data,
        len(RATES) * family.seeds,
        precision=best_precision("cpu", materials.info.d_model),
        tokens_per_pass=TOKENS_PER_PASS["cpu"][0],
        num_lanes=torch.get_num_threads(),
    )
    scale = engine.backbone.embedding_rms
    space = materials.space.at(scale)
    slots = [
        engine.join(
            space.config(
                {"relative_prompt_lr": rate},
                max_steps=family.max_steps,
                batch_size=16,
                seed=derive_seed(SEED, "start", seed),
                data_seed=derive_seed(SEED, "order", seed),
            )
        )
        for rate in RATES
        for seed in range(family.seeds)
    ]
    begun = time.monotonic()
    for step in range(family.max_steps):
        engine.step(slots)
        if (step + 1) % 50 == 0:
            print(f"{family.name}, {method}: step {step + 1}, {time.monotonic() - begun:.0f} s", flush=True)
    scores = [evaluation.score for evaluation in engine.evaluate(slots)]
    spreads = []
    for first in range(0, len(scores), family.seeds):
        of_rate = scores[first : first + family.seeds]
        spreads.append(Spread.of([score.value for score in of_rate], [score.standard_error for score in of_rate]))
    print(f"{family.name}, {method}: {' '.join(f'{spread.mean:.3f}' for spread in spreads)}", flush=True)
    return scale, spreads


def table(found: Sequence[tuple[Family, str, float, Sequence[Spread]]]) -> str:
    """One line a family and method; in bold the best, and what is within two of its standard errors."""
    heads = ["family", "method", "RMS", *(f"{rate:g}" for rate in RATES), "best absolute rate"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for family, method, scale, spreads in found:
        best = max(range(len(RATES)), key=lambda i: spreads[i].mean)
        close = [spreads[best].mean - spread.mean <= 2 * spreads[best].se for spread in spreads]
        cells = [f"**{s.mean:.3f}**" if near else f"{s.mean:.3f}" for s, near in zip(spreads, close, strict=True)]
        lines.append(
            "| " + " | ".join([family.name, method, f"{scale:g}", *cells, f"{RATES[best] * scale:.2g}"]) + " |"
        )
    return "\n".join(lines)


def main() -> int:
    """Make the models, sweep, print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=Path, required=True, help="folder that keeps the models made here")
    p.add_argument("--real", type=Path, help="folder with flan-t5-small/ and data/sst2/; adds that family")
    p.add_argument("--methods", default="prompt-tuning,adept", help="(default: %(default)s)")
    p.add_argument("--prompt-length", type=int, default=12, help="of the demonstration (default: %(default)s)")
    p.add_argument("--seeds", type=int, default=2, help="of the demonstration (default: %(default)s)")
    p.add_argument("--max-steps", type=int, default=300, help="of the demonstration (default: %(default)s)")
    p.add_argument("--pretraining-steps", type=int, default=2500, help="of the decoders (default: %(default)s)")
    p.add_argument("--out", type=Path, help="file for the table")
    options = p.parse_args()
    try:
        found = []
        for family in families(options):
            for method in options.methods.split(","):
                scale, spreads = sweep(family, method)
                found.append((family, method, scale, spreads))
    except AdeptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(found)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
