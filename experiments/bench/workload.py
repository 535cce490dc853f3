"""What the benchmarks train and how they time it: models, rows, seconds and tables.

A model is the demonstration's, a folder, or a shape with random weights, which take the same time as trained ones.
Rows are random tokens whose lengths are drawn from a real task's (`lengths.json`, made by `lengths.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from adept_tune.backbones import BackboneInfo, inspect_backbone
from adept_tune.backbones.load import Precision
from adept_tune.engine.build import build_engine
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.engine import Engine
from adept_tune.engine.memory import keep_freed
from adept_tune.methods import INPUT_SIDE
from adept_tune.tasks.metrics import chance
from adept_tune.tasks.tokens import Ragged, TaskData, TokenSplit
from adept_tune.tracking import versions
from adept_tune.tuning.search import TOKENS_PER_PASS

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "adept_tune" / "demo" / "model"
LENGTHS = Path(__file__).with_name("lengths.json")
PADDED = "padded-256"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES: dict[str, dict[str, int]] = {
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
    "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "vocab_size": 32128},
}
METHOD = "adept"


# -- models and rows -------------------------------------------------------------------------------------------------


def find_model(name: str, scratch: Path) -> BackboneInfo:
    """The demonstration's model, a shape with random weights (written to the scratch folder), or a folder."""
    if name == "demo":
        return inspect_backbone(str(DEMO_MODEL))
    if name not in SHAPES:
        return inspect_backbone(name)
    folder = scratch / name
    if not folder.exists():
        write_random(folder, SHAPES[name])
    return inspect_backbone(str(folder))


def stock_model(info: BackboneInfo, device: str, precision: Precision) -> Any:
    """A frozen T5 as transformers has it, without the parts that are ours in a loaded backbone."""
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(info.name, dtype=DTYPES[precision]).to(device)
    return model.eval().requires_grad_(False)


def write_random(folder: Path, shape: dict[str, int]) -> None:
    """A T5 of a shape, with random weights and the demonstration's tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(**shape, decoder_start_token_id=0, dropout_rate=0.1, tie_word_embeddings=True)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(DEMO_MODEL)).save_pretrained(folder)


def draw_lengths(name: str, num_rows: int, seed: int) -> list[int]:
    """Source lengths in tokens, as a real task has them; `padded-256` gives 256 to every row."""
    if name == PADDED:
        return [256] * num_rows
    counts = {int(length): count for length, count in json.loads(LENGTHS.read_text())[name].items()}
    total = sum(counts.values())
    rng = np.random.default_rng(seed)
    drawn = rng.choice(list(counts), size=num_rows, p=[count / total for count in counts.values()])
    return [int(length) for length in drawn]


def make_data(info: BackboneInfo, lengths: str, num_rows: int = 2048, num_validation: int = 128) -> TaskData:
    """A two-label task of random tokens with real lengths."""

    def split(count: int, seed: int) -> TokenSplit:
        rng = np.random.default_rng(seed)
        sources = [[*rng.integers(3, info.vocab_size, n - 1).tolist(), 1] for n in draw_lengths(lengths, count, seed)]
        labels = rng.integers(0, 2, count).astype(np.int32)
        targets = Ragged.from_lists(label_ids[label] for label in labels)
        return TokenSplit(Ragged.from_lists(sources), {"digits": targets}, labels)

    label_ids = [[5, 1], [6, 1]]
    validation = split(num_validation, 2)
    return TaskData(
        task=lengths,
        metric="accuracy",
        train=split(num_rows, 1),
        validation=validation,
        test=validation,
        label_sets={"digits": Ragged.from_lists(label_ids)},
        label_texts={"digits": ("0", "1")},
        pad_id=0,
        max_source_length=256,
        chance=chance("accuracy", validation.labels.tolist()),
        fingerprint=lengths,
    )


def make_engine(
    info: BackboneInfo,
    data: TaskData,
    num_slots: int,
    device: str,
    precision: Precision,
    num_lanes: int = 1,
    ours: bool = True,
) -> Engine:
    """An engine with room for the benchmarks' trials, with the tokens a pass that a host tries first.

    Where it is ours, its process keeps what it frees from here on, as a host does.
    """
    if ours and device == "cpu":
        keep_freed()
    config = trial(info, 1)
    engine = build_engine(
        info,
        INPUT_SIDE[METHOD],
        data,
        num_slots,
        device=device,
        precision=precision,
        tokens_per_pass=TOKENS_PER_PASS[device][0],
        num_lanes=num_lanes,
        widest=(config.prompt_length, config.width),
    )
    assert isinstance(engine, Engine), f"{METHOD} is an input-side method"
    return engine


def warm_up_steps(device: str) -> int:
    """Steps before some are timed; a GPU's passes are captured when their shapes recur."""
    return 10 if device == "cuda" else 1


def trial(info: BackboneInfo, batch_size: int, number: int = 0) -> TrialConfig:
    """The paper's point, m = 60 and r = 19, or the demonstration's."""
    small = info.d_model < 512
    return TrialConfig(
        prompt_length=12 if small else 60,
        width=3 if small else 19,
        batch_size=batch_size,
        max_steps=100_000,
        seed=number,
        data_seed=0,
    )


# -- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Several measurements of one quantity."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the measurements."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the range, as a share of the median."""
        return (max(self.values) - min(self.values)) / 2 / self.median

    def __str__(self) -> str:
        return f"{self.median:.4g} ± {100 * self.spread:.0f}%"


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, do: Callable[[], object], times: int = 1) -> float:
    """How long something takes on average, the device's own work included."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(times):
        do()
    synchronize(device)
    return (time.perf_counter() - begun) / times


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Keep some processes busy meanwhile, as on a machine that does something besides."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def in_turns(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, Timing]:
    """Measure every side once a round, so that what the machine does besides meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure())
    return {name: Timing(tuple(values)) for name, values in found.items()}


def machine_peak(device: str, precision: Precision, size: int = 2048, tries: int = 5) -> float:
    """Floating-point operations a second of the best of several square matrix products."""
    dtype = DTYPES[precision]
    size = size if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(device, lambda: a @ b) for _ in range(tries + 1))
    return 2 * size**3 / best


def count_flops(do: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and attentions that something runs."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        do()
    return int(counter.get_total_flops())


# -- commands and tables ---------------------------------------------------------------------------------------------


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for models made on the way."""
    with TemporaryDirectory(prefix="adept-bench-") as name:
        yield Path(name)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch on a CPU (default: all cores)")
    p.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: %(default)s)")
    p.add_argument("--out", type=Path, help="write the table to this file as well")
    return p


def add_workload(p: argparse.ArgumentParser, model: str) -> None:
    """The options of a benchmark of one model, one kind of rows and one precision."""
    shown = "demo, t5-small, t5-base, t5-large, or a folder (default: %(default)s)"
    p.add_argument("--model", default=model, help=shown)
    p.add_argument("--lengths", default="cola", help="cola, rte or padded-256 (default: %(default)s)")
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")


def prepared(options: argparse.Namespace) -> argparse.Namespace:
    """Check the common options and set torch's threads.

    Raises:
        SystemExit: With exit code 2 and a message.
    """
    if min(options.rounds, options.threads) < 1:
        raise SystemExit(_refuse("--rounds and --threads must be at least 1"))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(_refuse("--device cuda: there is no GPU here; use cpu"))
    torch.set_num_threads(options.threads)
    return options


def most_lanes(options: argparse.Namespace) -> int:
    """Passes side by side that a host tries first: one for each thread of a CPU."""
    return options.threads if options.device == "cpu" else 1


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def machine(options: argparse.Namespace) -> str:
    """What the figures were measured on, in a line."""
    found = versions()
    names = ("torch", "transformers", "ray", "python")
    device = f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads"
    if options.device == "cuda":
        device = torch.cuda.get_device_name()
    return f"{device}; " + ", ".join(f"{name} {found[name]}" for name in names if name in found) + "."


def cpu_name() -> str:
    """The processor, with the extension that makes bf16 fast where it has one."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")
    fast = [extension for extension in ("avx512_bf16", "amx_bf16") if extension in text]
    return f"{name} ({', '.join(fast)})" if fast else name


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def publish(title: str, parts: Sequence[str], options: argparse.Namespace) -> None:
    """Print the page, and write it where asked."""
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"`{command}`", machine(options), *parts]) + "\n"
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
