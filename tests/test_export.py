"""Adapters in the hands of transformers and PEFT, in a process that cannot import this package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adept_tune import export
from adept_tune.adapter import load_adapter, save_adapter
from adept_tune.backbones import inspect_backbone
from adept_tune.engine.build import build_engine
from adept_tune.engine.config import TrialConfig
from adept_tune.methods import IN_MODEL, METHODS
from adept_tune.tasks.rows import Splits
from adept_tune.tasks.tokens import load_task_data, tokenizer_fingerprint
from tests.support.decoders import save_tiny_decoder
from tests.test_adapter import TASK, made_rows, save_backbone

ELSEWHERE = """
import json, sys
sys.modules["adept_tune"] = None  # importing it raises
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

base, adapter, kind, texts, precision = json.loads(sys.argv[1])
dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
model = auto.from_pretrained(base, dtype=dtype).eval()
shifted_from = model.config.vocab_size // 2 if kind == "folded decoder" else 0
model = PeftModel.from_pretrained(model, adapter) if adapter else model
tokenizer = AutoTokenizer.from_pretrained(base)
answers = []
for text in texts:
    ids = tokenizer(text, truncation=True, max_length=10, return_tensors="pt")
    source = ids.input_ids + shifted_from
    new = model.generate(input_ids=source, attention_mask=ids.attention_mask, max_new_tokens=3, do_sample=False)
    new = new[:, source.shape[1]:] if kind != "t5" and new.shape[1] > 3 else new
    answers.append(tokenizer.decode(new[0], skip_special_tokens=True))
print(json.dumps(answers))
"""


def adapter_of(
    folder: Path, model: Path, method: str, prompt_length: int = 4, precision: Any = "fp32", num_steps: int = 12
) -> Path:
    """Train a little on a model folder and save."""
    from adept_tune.backbones import load_tokenizer

    info = inspect_backbone(str(model))
    tokenizer = load_tokenizer(info)
    splits = Splits(
        *(made_rows(s, n, n, TASK.columns) for s, n in (("train", 40), ("validation", 8), ("test", 30))), "here"
    )
    data = load_task_data(TASK, splits, tokenizer, tokenizer_fingerprint(tokenizer), folder / "cache")
    engine = build_engine(info, METHODS[method], data, 1, precision=precision)
    slot = engine.join(
        TrialConfig(
            prompt_length=prompt_length,
            width=3,
            batch_size=8,
            max_steps=40,
            warmup_steps=0,
            prompt_lr=0.5,
            offset_lr={"prefix-tuning": 0.3}.get(method, 1e-3) if method in IN_MODEL else 0.1,
            labels="words",
        )
    )
    for _ in range(num_steps):
        engine.step([slot])
    out = folder / "adapter"
    save_adapter(out, engine.state(slot), TASK, info.as_dict(), precision, {}, {}, {})
    return out


def elsewhere(base: Path, adapter: Path | None, kind: str, texts: list[str], folder: Path, precision: str) -> list[str]:
    """Answers of transformers and PEFT alone."""
    given = json.dumps([str(base), str(adapter) if adapter else None, kind, texts, precision])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, given], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return answers


def compared(adapter: Path, base: Path, peft: Path | None, kind: str, folder: Path, precision: str = "fp32") -> None:
    texts = made_rows("more", 40, 7, TASK.columns).columns["sentence"]
    ours = load_adapter(adapter).predict(texts)
    assert len(set(ours)) > 1  # or the comparison would say little
    assert elsewhere(base, peft, kind, [f"sentence: {text}" for text in texts], folder, precision) == ours


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("prompt_length", "precision"), [(4, "fp32"), (0, "fp32"), (4, "bf16")])
def test_a_folded_adapter_answers_elsewhere_as_here(
    tied: bool, prompt_length: int, precision: str, tmp_path: Path
) -> None:
    adapter = adapter_of(tmp_path, save_backbone(tmp_path / "base", tied=tied), "adept", prompt_length, precision)
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out"), "--fold"]) == 0
    folded = tmp_path / "out"
    compared(adapter, folded / "model", folded if prompt_length else None, "t5", tmp_path, precision)
    again = ["--adapter", str(adapter), "--to", str(folded), "--fold"]
    assert export.main(again) == 2  # what is there may be the model of other adapters


@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("llama", False), ("mistral", True)])
def test_a_decoder_reads_its_source_from_the_folded_half_of_its_table(family: str, tied: bool, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, save_tiny_decoder(tmp_path / "base", family, tied=tied), "adept", num_steps=5)
    folded = tmp_path / "out"
    assert export.main(["--adapter", str(adapter), "--to", str(folded), "--fold"]) == 0
    compared(adapter, folded / "model", folded, "folded decoder", tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "gemma", "gemma3_text"])
def test_a_folded_decoder_keeps_its_own_table_and_head_beside_the_shifted_rows(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save_tiny_decoder(tmp_path / "base", family, tied=True)
    adapter = adapter_of(tmp_path, base, "adept", num_steps=5)
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out"), "--fold"]) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "out" / "model"))
    ids = torch.arange(before.config.vocab_size)
    table_VD = before.get_input_embeddings()(ids)
    read_VD = after.get_input_embeddings()(torch.cat([ids, ids + len(ids)]))
    assert torch.equal(read_VD[: len(ids)], table_VD)
    torch.testing.assert_close(read_VD[len(ids) :], load_adapter(adapter).shifted(table_VD), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(read_VD[len(ids) :], table_VD, atol=1e-3)
    assert torch.equal(after.lm_head.weight[: len(ids)], before.lm_head.weight)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_folded_model_differs_from_its_base_in_what_the_encoder_reads_alone(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    base = save_backbone(tmp_path / "base", tied=tied)
    adapter = adapter_of(tmp_path, base, "adept")
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out"), "--fold"]) == 0
    models = [AutoModelForSeq2SeqLM.from_pretrained(path) for path in (base, tmp_path / "out" / "model")]
    assert models[0].config.scale_decoder_outputs == models[1].config.scale_decoder_outputs == tied
    before, after = (model.state_dict() for model in models)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"shared.weight", "encoder.embed_tokens.weight"}
    assert torch.equal(after["shared.weight"], after["encoder.embed_tokens.weight"])


def test_an_adapter_of_prompt_tuning_is_one_of_peft(tmp_path: Path) -> None:
    base = save_backbone(tmp_path / "base")
    adapter = adapter_of(tmp_path, base, "prompt-tuning")
    compared(adapter, base, adapter, "t5", tmp_path)
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out")]) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (adapter / name).read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoders_adapter_of_prompt_tuning_is_one_of_peft(family: str, tmp_path: Path) -> None:
    base = save_tiny_decoder(tmp_path / "base", family)
    adapter = adapter_of(tmp_path, base, "prompt-tuning")
    compared(adapter, base, adapter, "decoder", tmp_path)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *(("lora", None), ("ia3", None), ("prefix-tuning", None)),
        *((method, family) for method in ("lora", "ia3", "prefix-tuning") for family in ("gpt2", "llama")),
    ],
)
def test_an_adapter_inside_the_model_is_one_of_peft(method: str, family: str | None, tmp_path: Path) -> None:
    if family is None:
        base = save_backbone(tmp_path / "base", num_layers=3, num_decoder_layers=3)
    else:
        base = save_tiny_decoder(tmp_path / "base", family)
    adapter = adapter_of(tmp_path, base, method)
    kind = "t5" if family is None else "decoder"
    compared(adapter, base, adapter, kind, tmp_path)
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out")]) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (adapter / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_full_fine_tuning_is_exported_as_a_model(tied: bool, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, save_backbone(tmp_path / "base", tied=tied), "full")
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out")]) == 0
    compared(adapter, tmp_path / "out" / "model", None, "t5", tmp_path)
    assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out")]) == 2


def test_what_cannot_be_exported_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_backbone(tmp_path / "base")
    for method, arguments, said in (
        ("dept", ["--fold"], "method dept: its offsets depend on a token's place"),
        ("prompt-tuning", ["--fold"], "method prompt-tuning: has no offsets to fold"),
        ("adept", [], "method adept: without its offsets it is another adapter; give --fold"),
        ("lora", ["--fold"], "method lora: has no offsets to fold"),
        ("bitfit", [], "method bitfit: PEFT has no form for it"),
        ("houlsby", [], "method houlsby: PEFT has no form for it"),
        ("prefix-tuning", [], "method prefix-tuning: PEFT has no form for it"),  # on an even number of layers
    ):
        adapter = adapter_of(tmp_path / method, base, method)
        assert export.main(["--adapter", str(adapter), "--to", str(tmp_path / "out"), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
