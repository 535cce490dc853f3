"""Trials that start from an adapter: soft prompt transfer."""

import json
from pathlib import Path

import pytest
import torch

from adept_tune import search
from adept_tune.methods.start import transferred
from tests.engine.test_engine import config
from tests.support.data import made_engine
from tests.support.decoders import save_tiny_decoder
from tests.support.search import save_answering_t5, write_rows

PROMPT = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(("length", "rows"), [(2, [0, 1]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_a_prompt_is_cut_or_tiled(length: int, rows: list[int]) -> None:
    start = transferred({"prompt": torch.zeros(length, 2)}, {"prompt": PROMPT})
    assert torch.equal(start["prompt"], PROMPT[rows])


def test_a_prompt_of_no_length_gives_nothing() -> None:
    fresh = {"prompt": torch.ones(2, 2)}
    assert torch.equal(transferred(fresh, {"prompt": torch.zeros(0, 2)})["prompt"], fresh["prompt"])


def test_other_tensors_come_along_all_or_none() -> None:
    fresh = {"prompt": torch.zeros(1, 2), "w": torch.zeros(2, 3), "b": torch.zeros(3)}
    given = {"prompt": PROMPT, "w": torch.ones(2, 3), "b": torch.ones(3)}
    assert all(torch.equal(transferred(fresh, given)[name], given[name]) for name in ("w", "b"))
    given["b"] = torch.ones(4)
    assert not any(transferred(fresh, given)[name].any() for name in ("w", "b"))


def test_a_trial_that_starts_from_another_goes_on_where_that_was() -> None:
    first = made_engine("adept")
    slot = first.join(config(1, prompt_lr=1.0, offset_lr=0.1))
    for _ in range(20):
        first.step([slot])
    state = first.state(slot)
    again = made_engine("adept", start=state.tensors)
    own = again.join(config(2))
    for name, tensor in again.state(own).tensors.items():
        assert torch.equal(tensor, state.tensors[name])
    assert not any(moment.any() for moment in again.state(own).first.values())
    (expected,), (found,) = first.evaluate([slot]), again.evaluate([own])
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:task .* the published runs had")
def test_a_search_starts_from_what_another_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(tmp_path / "cache"))
    model, data = save_answering_t5(tmp_path / "model"), write_rows(tmp_path / "data", 80, 40)
    command = ["--task", "sst2", "--model", str(model), "--data-dir", str(data), "--trials", "2", "--max-steps", "12"]
    command += ["--batch-size", "8", "--finalists", "1", "--seeds", "1", "--device", "cpu"]
    assert search.main([*command, "--experiment", str(tmp_path / "one")]) == 0
    adapter = tmp_path / "one" / "adapter"
    more = [*command, "--init-from", str(adapter), "--experiment"]
    assert search.main([*more, str(tmp_path / "two")]) == 0
    losses = []
    for name in ("one", "two"):
        events = [json.loads(line) for line in (tmp_path / name / "journal.jsonl").read_text().splitlines()]
        losses.append(next(e["train_loss"] for e in events if e["event"] == "reported" and e["trial"] == 0))
    assert losses[1] != losses[0]
    spec = json.loads((tmp_path / "two" / "spec.json").read_text())
    assert spec["init_sha256"] == json.loads((adapter / "adapter.json").read_text())["sha256"]
    capsys.readouterr()
    assert search.main([*command, "--resume", str(tmp_path / "two")]) == 2
    assert "init_sha256" in capsys.readouterr().err
    for extra, said in (
        (["--method", "dept"], "an adapter of adept; this search is of dept"),
        (["--model", str(save_tiny_decoder(tmp_path / "gpt2", "gpt2"))], "was trained on"),
    ):
        assert search.main([*more, str(tmp_path / "three"), *extra]) == 2
        assert said in capsys.readouterr().err
