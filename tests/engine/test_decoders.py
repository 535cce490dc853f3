"""The engine over decoder-only backbones: the same contract as over encoder-decoders."""

import json
from pathlib import Path

import pytest
import torch

from adept_tune import search
from adept_tune.adapter import load_adapter
from adept_tune.backbones.decoder_only import DecoderOnly
from adept_tune.engine.config import TrialConfig
from adept_tune.engine.engine import Engine
from adept_tune.tasks import get_task
from adept_tune.tasks.rows import load_splits
from tests.support.data import made_engine
from tests.support.decoders import save_tiny_decoder, tiny_decoder
from tests.support.search import write_rows

SIZES = [(1, 4, 3, "digits"), (9, 1, 6, "words"), (5, 2, 4, "digits")]
TRIALS = [
    TrialConfig(prompt_length=m, width=r, batch_size=b, labels=labels, seed=i, max_steps=40, warmup_steps=2)
    for i, (m, r, b, labels) in enumerate(SIZES)
]


def made(family: str, method: str) -> Engine:
    return made_engine(method, dtype=torch.float64, backbone=DecoderOnly(tiny_decoder(family), eos_id=1))


@pytest.mark.parametrize("method", ["adept", "dept", "prompt-tuning"])
@pytest.mark.parametrize(("family", "tolerance"), [("gpt2", 1e-8), ("llama", 1e-3)])  # Llama's norm rounds to float32
def test_fused_equals_alone(family: str, tolerance: float, method: str) -> None:
    together = made(family, method)
    slots = [together.join(trial) for trial in TRIALS]
    for _ in range(15):
        together.step(slots)
    evaluations = together.evaluate(slots)
    for trial, slot, evaluation in zip(TRIALS, slots, evaluations, strict=True):
        alone = made(family, method)
        own = alone.join(trial)
        for _ in range(15):
            alone.step([own])
        assert alone.train_loss(own) == pytest.approx(together.train_loss(slot), abs=tolerance)
        (expected,) = alone.evaluate([own])
        assert evaluation.loss == pytest.approx(expected.loss, abs=tolerance)
        if family == "gpt2":
            for name, tensor in together.state(slot).tensors.items():
                torch.testing.assert_close(tensor, alone.state(own).tensors[name], rtol=0, atol=tolerance)
            assert evaluation.texts == expected.texts


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "qwen3"])
def test_training_lowers_the_loss(family: str) -> None:
    engine = made(family, "adept")
    slot = engine.join(TRIALS[2].model_copy(update={"prompt_lr": 0.1, "offset_lr": 1e-2}))
    losses = []
    for _ in range(40):
        engine.step([slot])
        losses.append(engine.train_loss(slot))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.filterwarnings("ignore:task .* the published runs had")
def test_a_model_that_cannot_read_so_long_a_prompt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = save_tiny_decoder(tmp_path / "model", "gpt2")
    data = write_rows(tmp_path / "data", 40, 20)
    command = ["--task", "sst2", "--model", str(model), "--data-dir", str(data), "--device", "cpu"]
    assert search.main([*command, "--set", "prompt_length=120", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "reads at most 128 tokens; the longest source has" in said
    assert "a prompt of this space up to 120; give a space with shorter prompts" in said


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:task .* the published runs had")
def test_a_whole_search_and_what_it_exports(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(tmp_path / "cache"))
    model = save_tiny_decoder(tmp_path / "model", family)
    data = write_rows(tmp_path / "data", 80, 40)
    folder = tmp_path / "experiment"
    command = ["--task", "sst2", "--model", str(model), "--data-dir", str(data), "--trials", "3", "--max-steps", "12"]
    command += ["--batch-size", "8", "--finalists", "1", "--seeds", "1", "--device", "cpu", "--precision", "fp32"]
    assert search.main([*command, "--experiment", str(folder)]) == 0
    description = json.loads((folder / "adapter" / "adapter.json").read_text())
    assert description["backbone"]["model_type"] == family
    rows = list(load_splits(get_task("sst2"), data).test.rows())
    assert load_adapter(folder / "adapter").score(rows).score.value == description["metrics"]["test_accuracy"]
