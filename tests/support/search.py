"""A small search without Ray: spaces, studies on fakes, and trials that are functions instead of training."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from adept_tune.engine.config import TrialConfig
from adept_tune.tasks.metrics import Score
from adept_tune.tuning.journal import Event, Journal
from adept_tune.tuning.rungs import Rule
from adept_tune.tuning.samplers import Proposer
from adept_tune.tuning.space import Params, SearchSpace, SpaceFile, read_space, resolve_space
from adept_tune.tuning.store import Store
from adept_tune.tuning.study import Study
from adept_tune.tuning.work import Job, Report

D_MODEL, SOURCE_LENGTH = 16, 32

SPACE = {
    "prompt_length": {"low": 10, "high": 100, "step": 10},
    "ffn_width": {"low": 4, "high": 64, "log": True},
    "prompt_lr": {"low": 0.03, "high": 1.0, "log": True},
    "labels": {"choices": ["digits", "words"]},
}
POINT = {"prompt_length": 60, "ffn_width": 19, "prompt_lr": 0.3, "labels": "digits"}


def properties(max_examples: int) -> settings:
    """Hypothesis without a clock and a memory: the same examples on every machine, however busy."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def spec_fields(**changes: Any) -> dict[str, Any]:
    """Fields of a sound spec of a small search."""
    backbone = {"name": "m", "revision": "r" * 40, "model_type": "t5", "d_model": 16, "vocab_size": 32, "local": True}
    return {
        "search_id": "s",
        "task": "sst2",
        "data_dir": None,
        "data_fingerprint": "f",
        "backbone": backbone,
        "method": "adept",
        "space": {"method": "adept", "parameters": {}},
        "fixed": {},
        "labels": "digits",
        "trials": 3,
        "max_steps": 10,
        "slots": 2,
        "device": "cpu",
    } | changes


def space_of(parameters: dict[str, Any] | None = None, method: str = "adept", **others: Any) -> SearchSpace:
    """A resolved space from its parts."""
    file = SpaceFile.model_validate(
        {"method": method, "parameters": SPACE if parameters is None else parameters} | others
    )
    return resolve_space(file, D_MODEL, SOURCE_LENGTH)


def space_from(folder: Path, text: str, d_model: int = D_MODEL, name: str = "own", **fixed: Any) -> SearchSpace:
    """A resolved space from the text of a file, as a person writes it."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return resolve_space(read_space(str(path)), d_model, SOURCE_LENGTH, fixed)


def inside(space: SearchSpace, params: Params) -> bool:
    """Whether a point gives every dimension a value within it, and nothing else."""
    return params.keys() == space.dimensions.keys() and all(
        dimension.contains(params[name]) for name, dimension in space.dimensions.items()
    )


class ListProposer(Proposer):
    """Proposes what it was given, and notes what it is told."""

    def __init__(self, points: Sequence[Params]) -> None:
        self.points = list(points)
        self.told: list[tuple[Any, ...]] = []

    def propose(self, trial: int) -> Params | None:
        return self.points[trial] if trial < len(self.points) else None

    def again(self, trial: int, params: Params) -> None:
        self.told.append(("again", trial))

    def reported(self, trial: int, step: int, value: float) -> None:
        self.told.append(("reported", trial, step, value))

    def ended(self, trial: int, value: float | None, pruned: bool) -> None:
        self.told.append(("ended", trial, value, pruned))


class NotingStore(Store):
    """A store in memory that notes each write in a log it shares with others."""

    def __init__(self, log: list[Any] | None = None) -> None:
        super().__init__("memory://adept-tune-tests")
        self.log: list[Any] = [] if log is None else log
        self.states: dict[tuple[str, int], bytes] = {}

    def write(self, job: str, step: int, blob: bytes) -> None:
        self.log.append(("stored", job, step))
        self.states[job, step] = blob


class NotingJournal(Journal):
    """A journal that notes each line in a log it shares with others."""

    def __init__(self, path: Path, log: list[Any] | None = None) -> None:
        super().__init__(path, clock=lambda: 1.0)
        self.log: list[Any] = [] if log is None else log

    def append(self, event: Event) -> Event:
        written = super().append(event)
        self.log.append(("journalled", written["event"]))
        return written


def made_study(
    proposer: Proposer,
    rule: Rule,
    journal: Journal,
    store: Store | None = None,
    max_steps: int = 12,
    num_trials: int = 100,
    maximize: bool = True,
    listeners: Sequence[Callable[[Event], None]] = (),
    out_of_time: Callable[[], bool] = lambda: False,
) -> Study:
    """A study whose points are trial settings, at chance 0.5 with a standard error of 0.1."""
    return Study(
        proposer,
        rule,
        lambda params, number: (
            TrialConfig.model_validate(_settings(params) | {"max_steps": max_steps, "seed": number}),
            params,
        ),
        lambda config: 100 + config.prompt_length,
        Score(0.5, 0.1),
        maximize,
        num_trials,
        journal,
        NotingStore() if store is None else store,
        listeners,
        out_of_time,
    )


def _settings(params: Params) -> dict[str, Any]:
    return {
        {"ffn_width": "width", "ffn_lr": "offset_lr"}.get(name, name): value for name, value in ({} | params).items()
    }


def evaluated(step: int, score: float, loss: float = 0.5) -> Report:
    """A report with a score."""
    return Report(step, train_loss=loss, score=score, standard_error=0.05, loss=loss)


@dataclass
class Simulator:
    """Drives a study as Ray Tune does, several trials at once, with a formula in place of training.

    Attributes:
        study: What is driven.
        concurrent: Trials at once.
        calls: Told before each call that the study gets, and after the last.
    """

    study: Study
    concurrent: int = 3
    calls: Callable[[], None] = lambda: None
    running: list[tuple[Job, Iterator[int]]] = field(default_factory=list)

    def run(self) -> None:
        """Until the study has no more trials."""
        from adept_tune.tuning.work import End

        self.calls()
        while self._fill() or self.running:
            for entry in list(self.running):
                job, steps = entry
                step = next(steps, None)
                if step is None:
                    self.study.end(job.name, End.FINISHED, "ran to its end")
                elif job.config.seed % 11 == 7:
                    self.study.end(job.name, End.FAILED, "its process was lost")
                elif not self.study.report(job.name, simulated(job, step), lambda: b"state"):
                    self.calls()
                    continue
                self.running.remove(entry)
                self.calls()

    def _fill(self) -> bool:
        started = False
        while len(self.running) < self.concurrent and (job := self.study.next()) is not None:
            self.calls()
            self.study.started(job.name)
            self.calls()
            self.running.append((job, iter(job.reports)))
            started = True
        return started


def simulated(job: Job, step: int) -> Report:
    """What a trial tells: better the nearer its prompt rate is to 0.2; every ninth meets a NaN half way."""
    config = job.config
    if config.seed % 9 == 4 and step >= config.max_steps // 2:
        return Report(step, nan, diverged=True)
    quality = 1 / (1 + abs(config.prompt_lr - 0.2) * 5) * step / config.max_steps
    if step not in job.evaluations:
        return Report(step, train_loss=1 - quality)
    return Report(step, train_loss=1 - quality, score=0.5 + quality / 2, standard_error=0.05, loss=1 - quality / 2)


def made_rows(number: int, seed: int, label: str = "label") -> list[dict[str, Any]]:
    """Rows of SST-2's columns in the tiny vocabulary; the label says whether "good" is among the words."""
    from tests.support.tiny import WORDS

    draw, rows = random.Random(seed), []
    words = [word for word in WORDS[WORDS.index("the") :] if word != "good"]
    for index in range(number):
        chosen = draw.choices(words, k=draw.randint(2, 8))
        if index % 2:
            chosen.insert(draw.randint(0, len(chosen)), "good")
        rows.append({"sentence": " ".join(chosen), label: index % 2})
    return rows


def write_rows(folder: Path, num_train: int = 60, num_validation: int = 24, task: str = "sst2") -> Path:
    """A folder for `--data-dir`; of SST-2 a tenth of the training rows validates and the validation rows test."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    for seed, (split, number) in enumerate([("train", num_train), ("validation", num_validation)]):
        lines = [json.dumps(row) + "\n" for row in made_rows(number, seed)]
        (folder / task / f"{split}.jsonl").write_text("".join(lines))
    return folder


def save_answering_t5(folder: Path) -> Path:
    """A tiny T5 that always answers "0" or "1", which of them depending on the text, so that scores say something."""
    import torch

    from tests.support.tiny import VOCABULARY, tiny_t5, tiny_tokenizer

    model = tiny_t5(tied=False)
    with torch.no_grad():
        table_VD, head_VD = model.shared.weight, model.lm_head.weight
        start_D, zero_D, one_D = (table_VD[VOCABULARY[word]] for word in ("<pad>", "0", "1"))
        taste_D = torch.randn(16, generator=torch.Generator().manual_seed(1))
        taste_D -= start_D * (taste_D @ start_D) / (start_D @ start_D)  # what the decoder starts with tells nothing
        head_VD.zero_()
        head_VD[VOCABULARY["0"]] = start_D + 5 * taste_D
        head_VD[VOCABULARY["1"]] = start_D - 5 * taste_D
        head_VD[VOCABULARY["</s>"]] = 2 * (zero_D + one_D) - 2 * start_D
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
