"""Every cell of a table within seconds: a tiny model, made rows, one Ray, and one process that trains all cells.

A search on Ray starts five processes, one of which loads torch: about ten seconds of a core. Here a single actor is
broker and host of all searches, one after another, and a loop in this process runs their jobs in place of Ray Tune.
Everything else is the real thing: spaces, plan, journal, retraining, test, export, report, MLflow, resume.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from adept_tune.tasks import TASKS, Task
from adept_tune.tuning.broker import NAMESPACE
from adept_tune.tuning.cluster import LOCAL, ray_session
from adept_tune.tuning.host import Host, HostPlan
from adept_tune.tuning.interrupt import Interrupt
from adept_tune.tuning.materials import Materials
from adept_tune.tuning.ray_tune import Share
from adept_tune.tuning.spec import SearchSpec
from adept_tune.tuning.work import End, Progress, Report, Work

BENCH = "paper:bench"
NUM_ROWS = {"train": 40, "validation": 24, "test": 12}
WIDTHS = {"tiny": 16, "small": 24, "medium": 32, "large": 48}  # d_model of models of four sizes
WORDS = ("the", "a", "cat", "dog", "film", "plot", "was", "is", "not", "very", "good", "bad", "slow", "dull", "sharp")
# What a search of a cell is told besides task and method: a trial, retrained with two seeds.
SEARCH = [
    *("--trials", "1", "--max-steps", "2", "--batch-size", "4", "--finalists", "1", "--seeds", "2"),
    *("--trials-per-gpu", "1", "--device", "cpu", "--precision", "fp32", "--set", "num_threads=1"),
    "--allow-code-execution",  # of programs that a random model writes
]


# -- one Ray, one process that trains ---------------------------------------------------------------------------------


class Bench:
    """Broker and host of whichever search is on; see `Broker` and `Host` for what the methods do."""

    def __init__(self) -> None:
        self._host: Host | None = None

    async def seat(self, plan: HostPlan, data: Any) -> None:
        """Make place for the next search."""
        self._host = Host(plan)
        await self._host.load(data)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Let the host do something."""
        return await getattr(self._host, method)(*arguments)

    async def host(self, node_id: str, gpu: str | None) -> tuple[str, Any]:
        """Itself, as a host."""
        return BENCH, ray.get_actor(BENCH, namespace=NAMESPACE)

    async def load(self, data: Any) -> None:
        """Nothing: `seat` has."""

    async def probe(self, *arguments: Any) -> Any:
        """Time a few steps."""
        return await self.call("probe", *arguments)

    async def score(self, *arguments: Any) -> Any:
        """Score a saved trial."""
        return await self.call("score", *arguments)

    async def settle(self, changes: Mapping[str, int | None]) -> None:
        """Nothing: each search has a host of its own."""

    async def journalled(self, job: str, step: int) -> None:
        """Nothing: the loop reads the journal's progress itself."""


@contextmanager
def bench() -> Iterator[Callable[[SearchSpec, Materials, dict[str, Progress], Path], Any]]:
    """One Ray with one actor for all searches of a block; gives what `run_search` takes as `hosts`."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file
    with ray_session(LOCAL, verbose=False):
        actor = ray.remote(Bench).options(name=BENCH, namespace=NAMESPACE, num_cpus=0, max_concurrency=100).remote()

        @contextmanager
        def hosts(spec: SearchSpec, materials: Materials, progress: dict[str, Progress], folder: Path) -> Iterator[str]:
            plan = HostPlan(
                backbone=spec.backbone,
                method=spec.method,
                device="cpu",
                precision="fp32",
                num_slots=1,
                tokens_per_pass=spec.tokens_per_pass,
                num_threads=1,
            )
            ray.get(actor.seat.remote(plan, materials.data))
            yield BENCH

        yield hosts


def drive(work: Work, broker: str, share: Share, max_failures: int, interrupt: Interrupt) -> bool:
    """Run a work's jobs one after another, each from its start; see `run_work`."""
    actor = ray.get_actor(broker, namespace=NAMESPACE)

    def call(method: str, *arguments: Any) -> Any:
        return ray.get(actor.call.remote(method, *arguments))

    with interrupt.watched():
        while not interrupt.asked and (job := work.next()) is not None:
            name = job.name
            work.started(name)
            try:
                call("join", name, 0, job.config.model_dump(mode="json"), None)
                for step in job.reports:
                    report = Report(**call("train_to", name, 0, step, step in job.evaluations))
                    if work.report(name, report, lambda n=name, s=step: call("fetch_state", n, 0, s)):  # type: ignore[misc]
                        break
            except ray.exceptions.RayTaskError as error:
                work.end(name, End.FAILED, " ".join(str(error.cause).split())[:300], str(error))
            call("leave", name, 0)
    return interrupt.asked


# -- tiny models ------------------------------------------------------------------------------------------------------


def save_model(folder: Path, size: str = "medium") -> Path:
    """Write a T5 with random weights and a tokenizer that makes a token of each character; nothing where there is one.

    Args:
        folder: Of the models; each size has a folder of its own there.
        size: One of `WIDTHS`.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    place = folder / size
    if (place / "tokenizer.json").exists():
        return place
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Fuse()
    d_model = WIDTHS[size]
    shape = {"d_model": d_model, "d_kv": 8, "d_ff": 2 * d_model, "num_layers": 1, "num_heads": 2}
    untied = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = T5Config(**shape, **untied, vocab_size=len(vocabulary), decoder_start_token_id=0)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    _make_it_answer(model, vocabulary)
    logging.disable_progress_bar()
    model.save_pretrained(place)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(place)
    return place


def _make_it_answer(model: Any, vocabulary: Mapping[str, int]) -> None:
    """Let a random T5 answer "0" or "1", which of them depending on the text, so that there are scores to compare."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name:
                parameter.copy_(torch.randn(parameter.shape) * (3.0 if name.startswith("shared") else 0.15))
        table_VD = model.shared.weight
        head_VD = torch.zeros_like(table_VD)
        start_D, zero_D, one_D = (table_VD[vocabulary[token]] for token in ("<pad>", "0", "1"))
        taste_D = torch.randn(table_VD.shape[1])
        common_D = _first_state(model, vocabulary)  # tells nothing of the text
        taste_D -= common_D * (taste_D @ common_D) / (common_D @ common_D)
        head_VD[vocabulary["0"]] = start_D + 5 * taste_D
        head_VD[vocabulary["1"]] = start_D - 5 * taste_D
        head_VD[vocabulary["</s>"]] = 2 * (zero_D + one_D) - 2 * start_D
    model.lm_head.weight = torch.nn.Parameter(head_VD)


def _first_state(model: Any, vocabulary: Mapping[str, int]) -> Any:
    """What the decoder makes of its start, on average over texts."""
    import torch

    draw = random.Random(0)
    texts = [[vocabulary[character] for character in " ".join(draw.choices(WORDS, k=12))[:40]] for _ in range(64)]
    read = model.encoder(torch.tensor(texts)).last_hidden_state
    begin = torch.zeros(len(texts), 1, dtype=torch.long)
    return model.decoder(input_ids=begin, encoder_hidden_states=read).last_hidden_state.mean((0, 1))


# -- made rows --------------------------------------------------------------------------------------------------------


def save_rows(folder: Path, tasks: Sequence[str]) -> Path:
    """Write made rows of tasks as `--data-dir` wants them; nothing where they are there."""
    for name in tasks:
        task = TASKS[name]
        for split in task.official_splits:
            path = folder / name / f"{split}.jsonl"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in made_rows(task, split)))
    return folder


def made_rows(task: Task, split: str) -> list[dict[str, Any]]:
    """Rows of words in the columns that the Hub has for a task; answers are drawn evenly and mean nothing."""
    draw = random.Random(f"{task.name} {split}")
    return [_row(task, draw, number) for number in range(NUM_ROWS[split])]


def _row(task: Task, draw: random.Random, number: int) -> dict[str, Any]:
    words = draw.choices(WORDS, k=4)
    row: dict[str, Any] = {name: " ".join(draw.choices(WORDS, k=4)) for name in task.columns}
    if task.answers is None:
        row[task.label_column] = _label(task, number)
    special: Mapping[str, dict[str, Any]] = {
        "wsc": {"text": " ".join(words), "span1_text": words[0], "span2_text": words[2]}
        | {"span1_index": 0, "span2_index": 2},
        "multirc": {"idx": {"paragraph": 0, "question": number // 3, "answer": number}},
        "record": {"entities": words[:2], "answers": words[:1]},
        "mbpp": {"code": "def f(n):\n    return n", "test_list": ["assert f(1) == 1"], "test_setup_code": ""},
    }
    if task.answer_columns == ("answers",) and task.name != "record":  # MRQA
        row["answers"] = words[:1]
    return row | special.get(task.name, {})


def _label(task: Task, number: int) -> Any:
    """What the label column holds for the labels in turn."""
    label = number % task.num_labels
    if task.label_step is not None:
        return round(label * task.label_step, 1)
    return label if task.label_values is None else task.label_values[label]
