"""Exported adapters: another program gets what the search scored, and a spoilt folder says what is wrong with it."""

import copy
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import adept_tune
from adept_tune.adapter import DESCRIPTION, TENSORS, load_adapter, save_adapter
from adept_tune.backbones import BackboneInfo, inspect_backbone, load_tokenizer
from adept_tune.engine.build import build_engine
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.reading import Evaluation
from adept_tune.engine.state import TrialState
from adept_tune.errors import AdeptError, BackboneError, StateError, TaskError
from adept_tune.methods import IN_MODEL, METHODS
from adept_tune.tasks import Task
from adept_tune.tasks.rows import Rows, Splits
from adept_tune.tasks.tokens import load_task_data, tokenizer_fingerprint
from tests.support.tiny import WORDS, tiny_t5, tiny_tokenizer

TASK = Task(
    name="made",
    columns=("sentence",),
    template="sentence: {sentence}",
    label_sets={"digits": ("0", "1"), "words": ("no", "very good")},
    split_rule="official",
    metric="accuracy",
    max_source_length=10,
)
PAIRS = Task(
    name="pairs",
    columns=("sentence1", "sentence2"),
    template="sentence1: {sentence1} sentence2: {sentence2}",
    label_sets={"digits": ("0", "1"), "words": ("no", "very good")},
    split_rule="official",
    metric="accuracy",
    max_source_length=10,
)
VERSIONS = {"adept_tune": "0.1.0"}
Description = dict[str, Any]


def save_backbone(folder: Path, seed: int = 1, **changes: Any) -> Path:
    """A model folder whose answers differ from row to row: its layers outweigh its embeddings."""
    model = tiny_t5(seed=seed, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name:
                parameter.mul_(0.2 if name.startswith("shared") else 4.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def made_rows(split: str, num_rows: int, seed: int, columns: tuple[str, ...]) -> Rows:
    """Random sentences, some longer than a source may be; the label says whether the first one is a long one."""
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS[8:], rng.integers(2, 13)))

    texts = {column: [sentence() for _ in range(num_rows)] for column in columns}
    return Rows(split, texts | {"label": [int(len(text.split()) > 6) for text in texts[columns[0]]]})


@dataclass(frozen=True)
class Export:
    """An exported adapter and what the search knew when it wrote it."""

    folder: Path
    backbone: BackboneInfo
    state: TrialState
    rows: list[dict[str, Any]]
    scored: Evaluation


def export(
    folder: Path, model: Path, method: str = "adept", task: Task = TASK, precision: Any = "fp32", num_steps: int = 25
) -> Export:
    """Train a little on a model folder, score the test rows, and save: as a search does at its end."""
    info = inspect_backbone(str(model))
    tokenizer = load_tokenizer(info)
    splits = Splits(
        *(made_rows(s, n, n, task.columns) for s, n in (("train", 40), ("validation", 8), ("test", 30))),
        "here",
    )
    data = load_task_data(task, splits, tokenizer, tokenizer_fingerprint(tokenizer), folder / "cache")
    engine = build_engine(info, METHODS[method], data, 1, precision=precision)
    rate = 1e-3 if method in IN_MODEL else 1e-2
    slot = engine.join(
        TrialConfig(
            prompt_length=4, width=3, batch_size=8, max_steps=50, warmup_steps=0, offset_lr=rate, labels="words"
        )
    )
    for _ in range(num_steps):
        engine.step([slot])
    state = engine.state(slot)
    scored = engine.score_state(state, "test")
    metrics = {"test_accuracy": scored.score.value, "test_accuracy_se": scored.score.standard_error}
    out = folder / "adapter"
    save_adapter(out, state, task, info.as_dict(), precision, metrics, {"trial": 3, "seed": 0}, VERSIONS)
    return Export(out, info, state, [splits.test.row(i) for i in range(len(splits.test))], scored)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(tmp_path_factory.mktemp("exported"), model)


@pytest.fixture
def folder(exported: Export, tmp_path: Path) -> Path:
    """A copy of the adapter, to spoil."""
    return Path(shutil.copytree(exported.folder, tmp_path / "spoilt"))


def description(folder: Path) -> Description:
    found: Description = json.loads((folder / DESCRIPTION).read_text())
    return found


def rewrite(folder: Path, change: Callable[[Description], None]) -> None:
    changed = description(folder)
    change(changed)
    (folder / DESCRIPTION).write_text(json.dumps(changed))


class TestRoundTrip:
    """What was scored is what is predicted."""

    @pytest.mark.parametrize("method", sorted(METHODS))
    def test_predictions_equal_what_the_search_scored(self, tmp_path: Path, model: Path, method: str) -> None:
        made = export(tmp_path, model, method)
        assert len(set(made.scored.texts)) > 2  # or equality would say little
        adapter = load_adapter(made.folder)
        assert adapter.predict(made.rows) == list(made.scored.texts)
        assert adapter.predict([row["sentence"] for row in made.rows]) == list(made.scored.texts)

    def test_score_equals_what_the_search_scored_and_a_count_by_hand(self, exported: Export) -> None:
        evaluation = load_adapter(exported.folder).score(exported.rows)
        right = sum(
            text == TASK.labels("words")[row["label"]]
            for text, row in zip(evaluation.texts, exported.rows, strict=True)
        )
        assert evaluation.score == exported.scored.score
        assert evaluation.score.value == right / len(exported.rows)
        assert evaluation.texts == exported.scored.texts
        assert evaluation.loss == pytest.approx(exported.scored.loss, abs=1e-6)

    def test_predictions_do_not_depend_on_company(self, exported: Export) -> None:
        adapter = load_adapter(exported.folder)
        alone = [adapter.predict([row])[0] for row in exported.rows[:8]]
        assert alone == list(exported.scored.texts[:8])

    def test_training_has_changed_the_answers(self, exported: Export, tmp_path: Path, model: Path) -> None:
        untrained = export(tmp_path, model, num_steps=0)
        assert untrained.scored.texts != exported.scored.texts

    def test_backbone_is_held_in_the_precision_of_the_search(self, tmp_path: Path, model: Path) -> None:
        made = export(tmp_path, model, precision="bf16")
        evaluation = load_adapter(made.folder).score(made.rows)
        assert evaluation.texts == made.scored.texts
        assert evaluation.loss == pytest.approx(made.scored.loss, abs=1e-6)
        rewrite(made.folder, lambda d: d.update(precision="fp32"))
        assert load_adapter(made.folder).score(made.rows).loss != pytest.approx(made.scored.loss, abs=1e-6)

    def test_folder_holds_tensors_and_description_and_nothing_else(self, exported: Export) -> None:
        assert {path.name for path in exported.folder.iterdir()} == {TENSORS, DESCRIPTION}
        tensors = load_file(exported.folder / TENSORS)
        assert set(tensors) == set(METHODS["adept"].axes)
        assert all(torch.equal(tensors[name], exported.state.tensors[name]) for name in tensors)

    def test_description_tells_origin_figures_and_backbone(self, exported: Export) -> None:
        found = description(exported.folder)
        assert (found["method"], found["prompt_length"], found["width"]) == ("adept", 4, 3)
        assert found["metrics"]["test_accuracy"] == exported.scored.score.value
        assert found["backbone"] == exported.backbone.as_dict()
        assert TrialConfig.model_validate(found["config"]) == exported.state.config
        assert (found["origin"], found["versions"]) == ({"trial": 3, "seed": 0}, VERSIONS)
        assert found["label_texts"] == ["no", "very good"]
        assert load_adapter(exported.folder).description == found

    def test_saving_again_replaces_the_adapter(self, exported: Export, folder: Path) -> None:
        halved = {name: tensor / 2 for name, tensor in exported.state.tensors.items()}
        state = replace(exported.state, tensors=halved)
        save_adapter(folder, state, TASK, exported.backbone.as_dict(), "fp32", {}, {}, VERSIONS)
        assert torch.equal(load_file(folder / TENSORS)["prompt"], halved["prompt"])
        assert {path.name for path in folder.iterdir()} == {TENSORS, DESCRIPTION}
        load_adapter(folder)

    def test_package_offers_load_adapter(self, exported: Export) -> None:
        assert adept_tune.load_adapter is load_adapter
        assert adept_tune.load_adapter(str(exported.folder)).columns == ("sentence",)

    def test_no_rows_no_predictions(self, exported: Export) -> None:
        assert load_adapter(exported.folder).predict([]) == []


class TestRows:
    """Rows that do not fit the task."""

    def test_plain_text_cannot_fill_two_columns(self, tmp_path: Path, model: Path) -> None:
        made = export(tmp_path, model, task=PAIRS, num_steps=0)
        adapter = load_adapter(made.folder)
        assert adapter.predict(made.rows) == list(made.scored.texts)
        with pytest.raises(TaskError, match="task pairs: a plain text cannot fill the columns sentence1, sentence2"):
            adapter.predict(["the cat"])

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"text": "the cat"}, "row 1 .*field 'sentence' is missing; the row has text"),
            ({"sentence": None}, "row 1 .*field 'sentence' is None"),
            (" ", "row 1 .*field 'sentence' is ' '"),
        ],
    )
    def test_row_that_does_not_fit_is_named(self, exported: Export, row: Any, said: str) -> None:
        with pytest.raises(TaskError, match=said):
            load_adapter(exported.folder).predict([{"sentence": "the cat"}, row])

    @pytest.mark.parametrize("label", [2, -1, None, "yes", 0.5])
    def test_label_outside_the_label_set_is_named(self, exported: Export, label: Any) -> None:
        rows = [exported.rows[0], {"sentence": "the cat", "label": label}]
        with pytest.raises(TaskError, match=rf"row 1 .*field 'label' is {label!r}; allowed: 0, 1"):
            load_adapter(exported.folder).score(rows)


class TestBackbone:
    """An adapter belongs to one model."""

    def test_model_that_moved_is_found_by_its_new_path(self, exported: Export, model: Path, tmp_path: Path) -> None:
        moved = shutil.copytree(model, tmp_path / "moved")
        assert load_adapter(exported.folder, str(moved)).predict(exported.rows) == list(exported.scored.texts)

    def test_model_that_is_gone_is_named(self, exported: Export, folder: Path) -> None:
        rewrite(folder, lambda d: d["backbone"].update(name="/gone/model"))
        with pytest.raises(BackboneError, match="'/gone/model': no such folder"):
            load_adapter(folder)

    def test_model_of_another_width_is_refused_with_both(self, exported: Export, tmp_path: Path) -> None:
        other = save_backbone(tmp_path / "wide", d_model=32)
        with pytest.raises(BackboneError, match=r"was trained on .*d=16, vocabulary 38.*; .*wide has d=32"):
            load_adapter(exported.folder, str(other))

    def test_model_of_the_same_sizes_and_other_weights_is_a_warning(self, exported: Export, tmp_path: Path) -> None:
        other = save_backbone(tmp_path / "other", seed=2)
        said = f"at {exported.backbone.revision}; using {other} at {inspect_backbone(str(other)).revision}"
        with pytest.warns(UserWarning, match=re.escape(said)):
            load_adapter(exported.folder, str(other))

    def test_model_that_was_changed_in_place_is_a_warning(self, tmp_path: Path, exported: Export) -> None:
        mine = save_backbone(tmp_path / "mine")
        made = export(tmp_path, mine, num_steps=0)
        save_backbone(mine, seed=2)
        with pytest.warns(UserWarning, match=made.backbone.revision):
            load_adapter(made.folder)


class TestDamage:
    """Spoilt files: one message that names the file, never a traceback."""

    @pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
    def test_missing_file_is_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(StateError, match=rf"{folder}: no adapter there \(.*{name} is missing"):
            load_adapter(folder)

    def test_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StateError, match=f"{tmp_path / 'nope'}: no adapter there"):
            load_adapter(tmp_path / "nope")

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_truncated_tensors_are_refused(self, folder: Path, share: float) -> None:
        blob = (folder / TENSORS).read_bytes()
        (folder / TENSORS).write_bytes(blob[: int(len(blob) * share)])
        with pytest.raises(StateError, match=f"{folder / TENSORS}: does not match the digest"):
            load_adapter(folder)

    @given(data=st.data())
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_flipped_byte_of_the_tensors_is_refused(self, folder: Path, data: st.DataObject) -> None:
        blob = bytearray((folder / TENSORS).read_bytes())
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
        spoilt = folder.parent / "flipped"
        shutil.copytree(folder, spoilt, dirs_exist_ok=True)
        (spoilt / TENSORS).write_bytes(bytes(blob))
        with pytest.raises(StateError, match=f"{spoilt / TENSORS}: does not match the digest"):
            load_adapter(spoilt)

    @given(content=st.binary(max_size=200))
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_random_bytes_for_a_description_are_refused(self, folder: Path, content: bytes) -> None:
        (folder / DESCRIPTION).write_bytes(content)
        with pytest.raises(StateError, match=str(folder / DESCRIPTION)):
            load_adapter(folder)

    @given(
        content=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["format", "task", "sha256", "x"]), inner),
            max_leaves=8,
        )
    )
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_random_json_for_a_description_is_refused(self, folder: Path, content: Any) -> None:
        (folder / DESCRIPTION).write_text(json.dumps(content))
        with pytest.raises(StateError, match=rf"{folder}/.*{DESCRIPTION}"):
            load_adapter(folder)

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
    def test_truncated_description_is_refused(self, folder: Path, share: float) -> None:
        text = (folder / DESCRIPTION).read_text()
        (folder / DESCRIPTION).write_text(text[: int(len(text) * share)])
        with pytest.raises(StateError, match=f"{folder / DESCRIPTION}: not readable"):
            load_adapter(folder)

    def test_another_format_is_refused_with_both_numbers(self, folder: Path) -> None:
        rewrite(folder, lambda d: d.update(format=2))
        with pytest.raises(StateError, match=f"{folder / DESCRIPTION}: format 2; this version reads format 1"):
            load_adapter(folder)

    def test_tensors_of_another_adapter_are_refused(self, folder: Path, tmp_path: Path, model: Path) -> None:
        other = export(tmp_path, model, num_steps=0)
        shutil.copy(other.folder / TENSORS, folder / TENSORS)
        with pytest.raises(StateError, match=f"{folder / TENSORS}: does not match the digest in {DESCRIPTION}"):
            load_adapter(folder)

    def test_sizes_that_are_not_those_of_the_tensors_are_refused(self, folder: Path) -> None:
        rewrite(folder, lambda d: d.update(prompt_length=5))
        with pytest.raises(StateError, match=r"prompt: expected shape \(5, 16\), found \(4, 16\)"):
            load_adapter(folder)

    @pytest.mark.parametrize(
        "key",
        [
            *("format", "method", "prompt_length", "width", "d_model", "source_length", "labels", "label_texts"),
            *("backbone", "task", "metrics", "sha256"),
        ],
    )
    def test_missing_entry_is_named(self, folder: Path, key: str) -> None:
        rewrite(folder, lambda d: d.pop(key) and None)
        with pytest.raises(StateError, match=f"{folder / DESCRIPTION}: .*{key}"):
            load_adapter(folder)

    @pytest.mark.parametrize(
        "path", [("task", "columns"), ("task", "template"), ("task", "metric"), ("backbone", "name")]
    )
    def test_missing_entry_further_in_is_named(self, folder: Path, path: tuple[str, str]) -> None:
        rewrite(folder, lambda d: d[path[0]].pop(path[1]) and None)
        with pytest.raises(StateError, match=f"{folder / DESCRIPTION}: .*{path[0]}.{path[1]}: Field required"):
            load_adapter(folder)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("prompt_length",), "many"),
            (("task", "metric"), "bleu"),
            (("task", "template"), "{text}"),
            (("task", "columns"), 7),
            (("label_texts",), ["no"]),
            (("label_texts",), ["no", 1]),
            (("source_length",), 1),
            (("backbone", "colour"), "blue"),
        ],
    )
    def test_edited_entry_is_refused(self, folder: Path, path: tuple[str, ...], value: Any) -> None:
        rewrite(folder, lambda d: put(d, path, value))
        with pytest.raises(StateError, match=str(folder / DESCRIPTION)):
            load_adapter(folder)

    def test_unknown_method_is_refused_with_the_file(self, folder: Path) -> None:
        rewrite(folder, lambda d: d.update(method="sgd"))
        with pytest.raises(StateError, match=f"{folder / DESCRIPTION}: .*sgd"):
            load_adapter(folder)

    @pytest.mark.parametrize("method", sorted(IN_MODEL))
    def test_tensors_of_another_method_are_refused(self, folder: Path, method: str) -> None:
        rewrite(folder, lambda d: d.update(method=method))
        with pytest.raises(StateError, match=f"{folder / TENSORS}: .* expected shape .* found"):
            load_adapter(folder)
        if "width" in METHODS[method].parameters.values():
            rewrite(folder, lambda d: d.update(width=0))
            with pytest.raises(StateError, match=f"{folder / TENSORS}: .*width=0"):
                load_adapter(folder)

    def test_no_edited_entry_ends_in_a_traceback(self, folder: Path) -> None:
        values = [None, -1, 2.5, math.inf, "x", "{", [], {}]
        original, traced = description(folder), []
        used = [path for path in places(original) if path[0] not in ("config", "metrics", "origin", "versions")]
        for path in used:
            for value in values:
                changed = copy.deepcopy(original)
                put(changed, path, value)
                (folder / DESCRIPTION).write_text(json.dumps(changed))
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # another revision
                        load_adapter(folder).predict(["the cat sat"])
                except AdeptError:
                    pass
                except Exception as error:
                    traced.append(f"{'.'.join(path)} = {value!r}: {type(error).__name__}: {error}")
        assert not traced, "\n".join(traced)


def put(values: Description, path: tuple[str, ...], value: Any) -> None:
    """Set an entry, however deep."""
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


def places(values: Description, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all entries, at every depth."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))
