"""A task whose answer is any text: from rows to tokens, to a score, to an exported adapter that gives the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adept_tune.adapter import DESCRIPTION, load_adapter, save_adapter
from adept_tune.backbones import inspect_backbone, load_tokenizer
from adept_tune.engine.build import build_engine
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.engine import Engine
from adept_tune.errors import StateError, TaskError
from adept_tune.methods import METHODS
from adept_tune.tasks import TASKS, Task
from adept_tune.tasks.metrics import score_texts
from adept_tune.tasks.rows import Rows, Splits
from adept_tune.tasks.tokens import TaskData, load_task_data, tokenizer_fingerprint
from tests.support.search import save_answering_t5
from tests.support.tiny import WORDS

OPEN = Task(
    name="copy",
    columns=("text",),
    answer_columns=("answers",),
    template="sentence: {text}",
    answers=lambda row: row["answers"],
    split_rule="official",
    metric="token_f1",
    also=("exact_match",),
    max_source_length=12,
    max_target_length=3,
)


def rows_of(split: str, num_rows: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    texts = [[str(word) for word in rng.choice(WORDS[8:], 4)] for _ in range(num_rows)]
    return Rows(split, {"text": [" ".join(t) for t in texts], "answers": [[" ".join(t[:2]), t[3]] for t in texts]})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_answering_t5(tmp_path_factory.mktemp("model"))


def data_of(task: Task, model: Path, cache: Path) -> TaskData:
    tokenizer = load_tokenizer(inspect_backbone(str(model)))
    splits = Splits(*(rows_of(s, n, n) for s, n in (("train", 30), ("validation", 9), ("test", 11))), "here")
    return load_task_data(task, splits, tokenizer, tokenizer_fingerprint(tokenizer), cache)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    data = data_of(OPEN, model, tmp_path_factory.mktemp("cache"))
    return build_engine(inspect_backbone(str(model)), METHODS["adept"], data, 2)


def config(seed: int, **changes: Any) -> TrialConfig:
    return TrialConfig(prompt_length=3, width=2, batch_size=4, max_steps=50, warmup_steps=0, seed=seed, **changes)


def test_targets_are_cut_and_end_and_references_are_whole(engine: Engine) -> None:
    data = engine.data
    assert data.label_sets == {}
    assert data.test.references is not None
    assert all(len(ids) <= 3 and ids[-1] == 1 for ids in data.test.targets["digits"])
    assert data.test.references == tuple(tuple(answers) for answers in rows_of("test", 11, 11).columns["answers"])
    taken = data.test.take([4, 2])
    assert taken.references == (data.test.references[4], data.test.references[2])


def test_data_are_the_same_from_the_cache_and_other_answers_are_other_data(model: Path, tmp_path: Path) -> None:
    first, again = (data_of(OPEN, model, tmp_path) for _ in range(2))
    assert (first.fingerprint, first.test.references) == (again.fingerprint, again.test.references)
    assert data_of(replace(OPEN, max_target_length=4), model, tmp_path).fingerprint != first.fingerprint
    assert data_of(replace(OPEN, every_answer=True), model, tmp_path).fingerprint != first.fingerprint


def test_in_training_a_row_may_be_taken_for_each_of_its_answers(model: Path, tmp_path: Path) -> None:
    data = data_of(replace(OPEN, every_answer=True), model, tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 9, 11)


def test_references_may_be_what_the_tokenizer_gives_back_of_the_first(model: Path, tmp_path: Path) -> None:
    data = data_of(replace(OPEN, references_as_decoded=True, max_target_length=2), model, tmp_path)
    assert data.test.references == tuple((a[0].split()[0],) for a in rows_of("test", 11, 11).columns["answers"])


def test_loss_is_that_of_the_first_right_answer_and_score_that_of_the_decoded_texts(engine: Engine) -> None:
    slots = [engine.join(config(1)), engine.join(config(2, labels="words"))]
    for _ in range(3):
        engine.step(slots)
    split = engine.data.validation
    for slot, evaluation in zip(slots, engine.evaluate(slots), strict=True):
        state = engine.state(slot)
        (alone,) = [engine.score_state(state, "validation")]
        assert evaluation.texts == alone.texts
        assert evaluation.loss == pytest.approx(alone.loss, rel=1e-5)
        assert evaluation.score == score_texts("token_f1", evaluation.texts, split.references or ())
        assert evaluation.also == {"exact_match": score_texts("exact_match", evaluation.texts, split.references or ())}
        assert evaluation.loss == pytest.approx(loss_by_transformers(engine, state.tensors), rel=1e-5)
        engine.leave(slot)


def loss_by_transformers(engine: Engine, tensors: dict[str, torch.Tensor]) -> float:
    """Mean over rows of the summed loss of the target, a row at a time, by the model's own forward."""
    split, model = engine.data.validation, engine.backbone.model  # type: ignore[attr-defined]
    losses = []
    with torch.no_grad():
        for i in range(len(split)):
            embeds = model.get_input_embeddings()(torch.tensor(split.sources[i].tolist()))
            hidden = torch.relu(embeds @ tensors["ffn_w1"] + tensors["ffn_b1"])
            shifted = embeds + hidden @ tensors["ffn_w2"] + tensors["ffn_b2"]
            target = torch.tensor(split.targets["digits"][i].tolist())[None]
            read = torch.cat([tensors["prompt"], shifted])[None]
            losses.append(float(model(inputs_embeds=read, labels=target).loss) * target.shape[1])
    return float(np.mean(losses))


def test_an_exported_adapter_of_the_table_scores_as_the_search_did(
    engine: Engine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "copy", OPEN)
    slot = engine.join(config(3, prompt_lr=1.0))
    for _ in range(20):
        engine.step([slot])
    state = engine.state(slot)
    scored = engine.score_state(state, "test")
    engine.leave(slot)
    save_adapter(tmp_path, state, OPEN, inspect_backbone(str(model)).as_dict(), "fp32", {}, {}, {})
    adapter = load_adapter(tmp_path)
    rows = list(rows_of("test", 11, 11).rows())
    again = adapter.score(rows)
    assert (again.texts, again.score, again.also) == (scored.texts, scored.score, scored.also)
    assert again.loss == scored.loss
    assert adapter.predict([row["text"] for row in rows]) == list(scored.texts)
    with pytest.raises(TaskError, match="rows: row 0"):
        adapter.score([{"text": "good", "answers": []}])
    monkeypatch.setitem(TASKS, "copy", replace(OPEN, template="text: {text}"))
    with pytest.raises(StateError, match=r"template of copy was 'sentence: \{text\}' and is 'text: \{text\}'"):
        load_adapter(tmp_path)
    monkeypatch.setitem(TASKS, "copy", replace(OPEN, metric="pass", also=()))
    with pytest.raises(StateError, match="metric of copy was 'token_f1' and is 'pass'"):
        load_adapter(tmp_path)


def test_programs_are_not_scored_by_the_way(
    engine: Engine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = replace(OPEN, metric="pass", also=())
    monkeypatch.setitem(TASKS, "copy", programs)
    slot = engine.join(config(5))
    state = engine.state(slot)
    engine.leave(slot)
    save_adapter(tmp_path, state, programs, inspect_backbone(str(model)).as_dict(), "fp32", {}, {}, {})
    with pytest.raises(TaskError, match="give --allow-code-execution"):
        load_adapter(tmp_path).score(list(rows_of("test", 2, 2).rows()))


def test_an_adapter_of_a_task_that_is_not_in_the_table_says_so(engine: Engine, model: Path, tmp_path: Path) -> None:
    slot = engine.join(config(4))
    state = engine.state(slot)
    engine.leave(slot)
    save_adapter(tmp_path, state, OPEN, inspect_backbone(str(model)).as_dict(), "fp32", {}, {}, {})
    assert json.loads((tmp_path / DESCRIPTION).read_text())["label_texts"] == []
    with pytest.raises(StateError, match=r"task: 'copy' is not in adept_tune\.tasks\.TASKS; put it there first"):
        load_adapter(tmp_path)


def test_a_tokenizer_that_cannot_write_programs_is_refused(model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(inspect_backbone(str(model)))
    row = {
        "text": "good",
        "code": "def f(x):\n    return x",
        "test_list": ["assert f(1) == 1"],
        "test_setup_code": "",
    }
    rows = {name: [value] * 3 for name, value in row.items()}
    splits = Splits(*(Rows(s, rows) for s in ("train", "validation", "test")), "here")
    with pytest.raises(TaskError, match=r"task mbpp: tokenizer .* cannot write programs: 3 of 3 read back changed"):
        load_task_data(TASKS["mbpp"], splits, tokenizer, tokenizer_fingerprint(tokenizer), tmp_path)
