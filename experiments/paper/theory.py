"""The paper's claims about offsets as numbers, measured on adapters that are trained here or were exported by a search.

1. Position: tokens put before a text move every token to another place. DePT's offsets belong to places, ADePT's to
   tokens. The score is taken with tokens prepended, and for DePT also with its offsets moved along with the text, which
   tells the loss through position from the loss through the added tokens.
2. Size: the offsets against the embeddings they are added to.
3. Rank: of the offsets of all tokens (ADePT, less its bias) or places (DePT).
4. Use: the score with offset or prompt removed from the trained adapter.

Without --adapters each method is trained with its space's first point, changed by --set, over several seeds.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from figures import Figure
from torch import Tensor

from adept_tune.adapter import load_adapter
from adept_tune.backbones import Backbone, load_backbone, load_tokenizer
from adept_tune.backbones.codec import TokenizerCodec
from adept_tune.backbones.load import best_precision
from adept_tune.cli import guarded
from adept_tune.engine.build import build_engine
from adept_tune.engine.reading import Evaluation, Reader, Trained
from adept_tune.errors import SpecError
from adept_tune.methods import INPUT_SIDE
from adept_tune.methods.base import Sizes
from adept_tune.tasks import get_task
from adept_tune.tasks.metrics import parse_label
from adept_tune.tasks.tokens import Ragged, TokenSplit
from adept_tune.tracking import versions
from adept_tune.tuning.materials import Materials, gather
from adept_tune.tuning.options import split_settings
from adept_tune.tuning.samplers import derive_seed
from adept_tune.tuning.search import DEMONSTRATION_BATCH_SIZE
from adept_tune.tuning.space import Params, is_space, overlaid, read_space, settings_of

METHODS = ("adept", "dept", "prompt-tuning")
SEED = 88_003  # of no search
PREPENDED = (1, 2, 4, 8)
SHIFT = 2  # tokens before a text, as in the paper's pilot study
RANK_TOLERANCE = 1e-5  # of the largest singular value
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Adapted:
    """One trained adapter.

    Attributes:
        tensors: Its own, unpadded.
        sizes: Of its axes.
        labels: Style of the label texts.
    """

    tensors: Mapping[str, Tensor]
    sizes: Sizes
    labels: str

    def trained(self, device: torch.device) -> Trained:
        """As a stack of one."""
        return Trained.of_one(self.tensors, self.sizes, self.labels, device)

    def without_offset(self) -> Adapted:
        """The same with offsets of zero; of a method that has none the same."""
        zeroed = {n: torch.zeros_like(t) for n, t in self.tensors.items() if n in ("ffn_w2", "ffn_b2", "low_rank_b")}
        return replace(self, tensors={**self.tensors, **zeroed})

    def without_prompt(self) -> Adapted:
        """The same with a prompt of no tokens."""
        return replace(
            self,
            tensors={**self.tensors, "prompt": self.tensors["prompt"][:0]},
            sizes=replace(self.sizes, prompt_length=0),
        )

    def moved_along(self, places: int) -> Adapted:
        """DePT with the offset of place i at place i + `places`, so that a text takes its offsets along."""
        a_SR = self.tensors["low_rank_a"]
        moved_SR = torch.cat([torch.zeros_like(a_SR[:places]), a_SR[: len(a_SR) - places]])
        return replace(self, tensors={**self.tensors, "low_rank_a": moved_SR})


@dataclass(frozen=True)
class Line:
    """A method's adapters, one a seed, and what reads with them."""

    name: str
    method: str
    adapted: Sequence[Adapted]
    reader: Reader


# -- adapters ---------------------------------------------------------------------------------------------------------


def reader_of(method: str, materials: Materials, backbone: Backbone) -> Reader:
    """What answers rows with adapters of a method."""
    data, codec = materials.data, TokenizerCodec(load_tokenizer(materials.info))
    sets = (data.label_sets, data.label_texts, data.pad_id, data.also, data.max_target_length)
    return Reader(backbone, INPUT_SIDE[method], codec, data.metric, *sets)


def train(materials: Materials, params: Params, options: argparse.Namespace) -> list[Adapted]:
    """Train a point over the seeds, fused."""
    engine = build_engine(
        materials.info,
        materials.space.method,
        materials.data,
        options.seeds,
        device=options.device,
        precision=best_precision(options.device, materials.info.d_model),
    )
    space = materials.space.at(engine.backbone.embedding_rms)
    print(f"training {space.method.name}: {space.shown(params)}", flush=True)
    usual = DEMONSTRATION_BATCH_SIZE if materials.task.demonstration else 32
    slots = []
    for seed in range(options.seeds):
        config = space.config(
            params,
            max_steps=options.max_steps or materials.task.published_steps or 30_000,
            batch_size=options.batch_size or usual,
            labels=options.labels or "digits",
            seed=derive_seed(SEED, "start", seed),
            data_seed=derive_seed(SEED, "order", seed),
        )
        slots.append(engine.join(config))
    for _ in range(config.max_steps):
        engine.step(slots)
    states = [engine.state(slot) for slot in slots]
    return [Adapted(state.tensors, state.sizes, state.config.labels) for state in states]


def trained_lines(options: argparse.Namespace) -> tuple[list[Line], Materials]:
    """Every method, trained here."""
    task = get_task(options.task)
    model = options.model or (str(ROOT / "adept_tune" / task.model) if task.model else None)
    if model is None:
        raise SpecError("--model: give one; only the demonstration has its own")
    fixed, unknown = split_settings(options.set)
    if unknown:
        raise SpecError(f"--set {', '.join(unknown)}: options of a search; give settings of a trial")
    lines: list[Line] = []
    for method in METHODS:
        of_task = f"{method}-{task.name}"
        file = read_space(of_task if is_space(of_task) else method)
        materials = gather(options.task, options.data_dir, model, file, None, options.labels)
        known = {name: value for name, value in fixed.items() if name in settings_of(INPUT_SIDE[method])}
        params = overlaid(materials.space.points[0], known)
        adapted = train(materials, params, options)
        backbone = lines[0].reader.backbone if lines else load_backbone(materials.info, options.device, "fp32")
        sizes = adapted[0].sizes
        name = f"{method} (m={sizes.prompt_length}, r={sizes.width})"
        lines.append(Line(name, method, adapted, reader_of(method, materials, backbone)))
    return lines, materials


def exported_lines(options: argparse.Namespace) -> tuple[list[Line], Materials]:
    """Adapters that searches have exported, a line each; all of one task and model."""
    lines: list[Line] = []
    for folder in options.adapters:
        adapter = load_adapter(folder, options.model)
        description = adapter.description
        if description["task"]["name"] != get_task(options.task).name:
            raise SpecError(f"--adapters {folder}: is of task {description['task']['name']}; give --task")
        method, labels = description["method"], description["labels"]
        model = options.model or adapter.info.name
        materials = gather(options.task, options.data_dir, model, read_space(method), None, labels)
        sizes = Sizes(*(description[key] for key in ("prompt_length", "width", "d_model", "source_length")))
        backbone = lines[0].reader.backbone if lines else load_backbone(materials.info, options.device, "fp32")
        name = f"{method} (m={sizes.prompt_length}, r={sizes.width})"
        adapted = [Adapted(adapter.tensors, sizes, labels)]
        lines.append(Line(name, method, adapted, reader_of(method, materials, backbone)))
    return lines, materials


# -- scores -----------------------------------------------------------------------------------------------------------


def prepended(split: TokenSplit, token: int, number: int) -> TokenSplit:
    """The rows with a token put before each text so many times."""
    return replace(split, sources=Ragged.from_lists([[token] * number + ids.tolist() for ids in split.sources]))


class Scorer:
    """Scores adapters on rows, and compares what they answer row by row and seed by seed.

    Args:
        materials: Of the task.
        split: The rows.
    """

    def __init__(self, materials: Materials, split: TokenSplit) -> None:
        self._materials = materials
        self._split = split

    def evaluate(self, line: Line, change: Callable[[Adapted], Adapted], split: TokenSplit) -> list[Evaluation]:
        """Each seed of a line, changed, on rows."""
        device = line.reader.backbone.device
        stacks = [change(adapted).trained(device) for adapted in line.adapted]
        return [line.reader.evaluate(stack, split)[0] for stack in stacks]

    def score(self, evaluations: Sequence[Evaluation]) -> Figure:
        """Mean over seeds."""
        values = [evaluation.score.value for evaluation in evaluations]
        errors = [evaluation.score.standard_error for evaluation in evaluations]
        return _figure(values, sqrt(fmean(error**2 for error in errors)))

    def change(self, line: Line, after: Sequence[Evaluation], before: Sequence[Evaluation]) -> Figure:
        """By how much scores have changed. Of accuracy the rows' part is paired; of others it is an upper bound."""
        gains = [a.score.value - b.score.value for a, b in zip(after, before, strict=True)]
        if self._materials.data.metric == "accuracy":
            pairs = zip(after, before, strict=True)
            by_row = np.mean([self._right(line, a) - self._right(line, b) for a, b in pairs], axis=0)
            return _figure(gains, float(by_row.std(ddof=1) / sqrt(len(by_row))))
        errors = [a.score.standard_error**2 + b.score.standard_error**2 for a, b in zip(after, before, strict=True)]
        return _figure(gains, sqrt(fmean(errors)))

    def _right(self, line: Line, evaluation: Evaluation) -> np.ndarray[Any, Any]:
        texts = self._materials.data.label_texts[line.adapted[0].labels]
        predicted = [parse_label(text, texts) for text in evaluation.texts]
        return np.equal(predicted, self._split.labels).astype(float)


def _figure(values: Sequence[float], rows_se: float) -> Figure:
    seeds_se = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
    return Figure(fmean(values), rows_se, seeds_se, len(values))


def score_tables(lines: Sequence[Line], scorer: Scorer, split: TokenSplit, token: int) -> list[str]:
    """The score under prepended tokens, and with parts removed."""
    shifted = {number: prepended(split, token, number) for number in PREPENDED}
    heads = ["adapter", "score", *(f"{number} before" for number in PREPENDED)]
    position, use = [], []
    for line in lines:
        print(f"scoring {line.name}", flush=True)
        before = scorer.evaluate(line, lambda a: a, split)
        plain = said(scorer.score(before), signed=False)
        after = [scorer.evaluate(line, lambda a: a, rows) for rows in shifted.values()]
        position.append([line.name, plain, *(said(scorer.change(line, one, before)) for one in after)])
        if line.method == "dept":
            moved = [scorer.evaluate(line, lambda a, n=n: a.moved_along(n), rows) for n, rows in shifted.items()]  # type: ignore[misc]
            changes = [said(scorer.change(line, one, before)) for one in moved]
            position.append([f"{line.name}, offsets moved along", plain, *changes])
            changes = [said(scorer.change(line, a, m)) for a, m in zip(after, moved, strict=True)]
            position.append([f"{line.name}, lost through position", DASH, *changes])
        removals = [Adapted.without_offset, Adapted.without_prompt]
        changes = [said(scorer.change(line, scorer.evaluate(line, part, split), before)) for part in removals]
        use.append([line.name, plain, DASH if line.method == "prompt-tuning" else changes[0], changes[1]])
    return [pipes(heads, position), pipes(["adapter", "score", "offset removed", "prompt removed"], use)]


# -- offsets ----------------------------------------------------------------------------------------------------------


def offsets(line: Line, adapted: Adapted, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Embeddings of a text's tokens and what is added to them, both `(tokens, d_model)` in float64."""
    backbone = line.reader.backbone
    tokens_TD = backbone.embed(torch.tensor(ids, device=backbone.device)).double()
    exact = replace(adapted, tensors={name: tensor.double() for name, tensor in adapted.tensors.items()})
    return tokens_TD, line.reader.shifted(exact.trained(backbone.device), tokens_TD) - tokens_TD


def size_row(line: Line, split: TokenSplit, token: int) -> list[str]:
    """How large offsets and prompt are against embeddings, and what moving a token does to its offset."""
    found: list[list[float]] = []
    for adapted in line.adapted:
        parts = [(*offsets(line, adapted, ids.tolist()), ids.tolist()) for ids in split.sources]
        embedding_TD, offset_TD = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        moved_TD = torch.cat([offsets(line, adapted, [token] * SHIFT + ids)[1][SHIFT:] for _, _, ids in parts])
        norm = float(embedding_TD.norm(dim=1).mean())
        size = float(offset_TD.norm(dim=1).mean())
        prompt = adapted.tensors["prompt"].float()
        found.append(
            [
                float(embedding_TD.abs().mean()),
                float(embedding_TD.abs().std()),
                float(offset_TD.abs().mean()),
                float(offset_TD.abs().std()),
                size / norm,
                float(prompt.norm(dim=1).mean()) / norm if len(prompt) else 0.0,
                float((moved_TD - offset_TD).norm(dim=1).mean()) / size if size else 0.0,
            ]
        )
    means = [fmean(column) for column in zip(*found, strict=True)]
    return [line.name, *(f"{mean:.3g}" for mean in means)]


def rank_row(line: Line, split: TokenSplit) -> list[str]:
    """The rank of the offsets: of all distinct tokens less the bias, or of all places that the rows have."""
    found = []
    for adapted in line.adapted:
        if line.method == "dept":
            ids = max((ids.tolist() for ids in split.sources), key=len)
        else:
            ids = np.unique(split.sources.values).tolist()
        offset_TD = offsets(line, adapted, ids)[1].double()
        if "ffn_b2" in adapted.tensors:
            offset_TD = offset_TD - adapted.tensors["ffn_b2"].double().to(offset_TD.device)
        values = torch.linalg.svdvals(offset_TD)
        power = values.square() / values.square().sum().clamp(min=1e-300)
        entropy = -(power * power.clamp(min=1e-300).log()).sum()
        rank = int((values > RANK_TOLERANCE * values[0]).sum())
        found.append([float(len(ids)), float(rank), float(entropy.exp()), float(power[0])])
    means = [fmean(column) for column in zip(*found, strict=True)]
    of = "places" if line.method == "dept" else "tokens"
    width = str(line.adapted[0].sizes.width)
    return [line.name, f"{means[0]:.0f} {of}", width, f"{means[1]:.1f}", f"{means[2]:.1f}", f"{means[3]:.2f}"]


# -- the report -------------------------------------------------------------------------------------------------------

DASH = "–"


def said(figure: Figure, signed: bool = True) -> str:
    """A figure in per cent with its standard error; a change beyond its 95 % interval is bold."""
    text = f"{100 * figure.mean:{'+' if signed else ''}.1f} ± {100 * figure.se:.1f}"
    beyond = figure.half is not None and abs(figure.mean) > figure.half
    return f"**{text}**" if signed and beyond else text


def pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def report(lines: Sequence[Line], materials: Materials, options: argparse.Namespace) -> str:
    """All tables."""
    data = materials.data
    room = data.max_source_length - max(PREPENDED)
    fitting = [i for i, length in enumerate(data.test.sources.lengths) if length <= room][: options.rows]
    split = data.test.take(fitting)
    token = load_tokenizer(materials.info)(options.prefix, add_special_tokens=False).input_ids[0]
    scorer = Scorer(materials, split)
    position, use = score_tables(lines, scorer, split, token)
    with_offset = [line for line in lines if line.method != "prompt-tuning"]
    sizes = [size_row(line, split, token) for line in lines]
    ranks = [rank_row(line, split) for line in with_offset]
    size_heads = ["adapter", "embedding, mean abs", "sd", "offset, mean abs", "sd", "offset / embedding, norms"]
    size_heads += ["prompt / embedding, norms", f"change of a token's offset {SHIFT} places on"]
    rank_heads = ["adapter", "of", "width", "rank", "effective rank", "share of the first"]
    return "\n\n".join(
        [
            f"# Claims about offsets: {options.task}",
            about(materials, options, len(split), lines),
            f"## Position: the token {options.prefix!r} put before every text",
            "Change of the score, in points.",
            position,
            "## Size",
            pipes(size_heads, sizes),
            "## Rank",
            "Rank counts singular values above 1e-5 of the largest; effective rank is exp(entropy) of their squares.",
            pipes(rank_heads, ranks),
            "## Use: parts removed after training",
            use,
        ]
    )


def about(materials: Materials, options: argparse.Namespace, num_rows: int, lines: Sequence[Line]) -> str:
    """What was measured on what."""
    found = versions() | {"python": platform.python_version(), "cores": str(os.cpu_count())}
    machine = ", ".join(f"{name} {found.get(name)}" for name in ("torch", "transformers", "python", "cores"))
    how = "exported adapters, one seed each, read in fp32"
    if not options.adapters:
        steps = options.max_steps or materials.task.published_steps
        how = f"{len(lines[0].adapted)} seeds of {steps} steps each"
        how += f", {', '.join(options.set)}" if options.set else ", each space's first point"
    model = "The demonstration's model" if materials.task.demonstration else Path(materials.info.name).name
    note = " A demonstration: it says nothing of the methods in general." if materials.task.demonstration else ""
    return (
        f"{model}, {materials.data.metric} in per cent on {num_rows} test rows; {how}. ± is the standard error over "
        "seeds and rows, paired where accuracies are compared; bold is beyond the 95 % interval, and one seed has none."
        f"{note} {machine}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and write them where asked."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--task", default="demo", help="(default: %(default)s)")
    p.add_argument("--model", help="name or folder (default: the demonstration's, or an adapter's own)")
    p.add_argument("--data-dir", type=Path, help="folder of the task's rows (default: the package or the Hub)")
    p.add_argument("--labels", choices=["digits", "words"], help="label texts (default digits)")
    p.add_argument("--adapters", type=Path, nargs="+", default=[], help="exported adapters instead of training")
    p.add_argument("--max-steps", type=int, help="of training (default: as published; demo: 300)")
    p.add_argument("--batch-size", type=int, help="rows of a step (default 32; demo: 16)")
    p.add_argument("--seeds", type=int, default=3, help="adapters of each method (default: %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every method that knows the key")
    p.add_argument("--rows", type=int, default=500, help="test rows, the first ones (default: %(default)s)")
    p.add_argument("--prefix", default="the", help="text whose first token is put before rows (default: %(default)s)")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--out", type=Path, help="write the tables to this file as well")
    options = p.parse_args(argv)

    def run() -> int:
        for name in ("max_steps", "batch_size", "seeds", "rows"):
            if getattr(options, name) is not None and getattr(options, name) < 1:
                raise SpecError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
        lines, materials = exported_lines(options) if options.adapters else trained_lines(options)
        text = report(lines, materials, options) + "\n"
        print(text)
        if options.out is not None:
            options.out.write_text(text, encoding="utf-8")
        return 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
