"""Model folders: what is loaded is what the files hold, and a folder that cannot be used says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5ForConditionalGeneration

from adept_tune.backbones import BackboneInfo, inspect_backbone, load_backbone, load_tokenizer
from adept_tune.backbones.encoder_decoder import EncoderDecoder
from adept_tune.backbones.load import best_precision
from adept_tune.errors import BackboneError
from tests.support.tiny import VOCABULARY, save_tiny_t5, tiny_t5, tiny_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("models") / "tied")


@pytest.fixture
def folder(tied_folder: Path, tmp_path: Path) -> Path:
    """A folder to spoil."""
    return Path(shutil.copytree(tied_folder, tmp_path / "tiny"))


def loaded(folder: Path, **options: str) -> EncoderDecoder:
    backbone = load_backbone(inspect_backbone(str(folder)), "cpu", **options)  # type: ignore[arg-type]
    assert isinstance(backbone, EncoderDecoder)
    return backbone


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


class TestInspection:
    """What is known before any weight is read."""

    def test_info_tells_kind_sizes_and_absolute_path(self, tied_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tied_folder.parent)
        info = inspect_backbone("./tied")
        assert info == inspect_backbone(str(tied_folder)) == inspect_backbone("tied")
        assert (info.name, info.local) == (str(tied_folder.resolve()), True)
        assert (info.model_type, info.d_model, info.vocab_size) == ("t5", 16, len(VOCABULARY))
        assert BackboneInfo(**json.loads(json.dumps(info.as_dict()))) == info

    def test_home_is_expanded(self, tied_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tied_folder.parent))
        assert inspect_backbone("~/tied").name == str(tied_folder.resolve())

    def test_revision_is_of_the_content_not_of_the_place(self, tied_folder: Path, folder: Path) -> None:
        assert inspect_backbone(str(folder)).revision == inspect_backbone(str(tied_folder)).revision

    @pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"])
    def test_revision_changes_with_any_file_that_matters(self, folder: Path, name: str) -> None:
        before = inspect_backbone(str(folder)).revision
        content = (folder / name).read_bytes()
        changed = content[:-1] + bytes([content[-1] ^ 1]) if name == WEIGHTS else content + b" "
        (folder / name).write_bytes(changed)
        assert inspect_backbone(str(folder)).revision != before

    @pytest.mark.parametrize("change", ["first byte", "last byte", "size"])
    def test_revision_of_large_weights_changes_with_either_end_and_the_size(self, folder: Path, change: str) -> None:
        large = bytearray(5 << 20)
        (folder / WEIGHTS).write_bytes(large)
        before = inspect_backbone(str(folder)).revision
        if change == "size":
            large += b"\0"
        else:
            large[0 if change == "first byte" else -1] = 1
        (folder / WEIGHTS).write_bytes(large)
        assert inspect_backbone(str(folder)).revision != before

    def test_revision_of_another_training_run_differs(self, tied_folder: Path, tmp_path: Path) -> None:
        other = save_tiny_t5(tmp_path / "other", seed=1)
        assert inspect_backbone(str(other)).revision != inspect_backbone(str(tied_folder)).revision

    def test_revision_does_not_change_with_a_readme(self, folder: Path) -> None:
        before = inspect_backbone(str(folder)).revision
        (folder / "README.md").write_text("tiny")
        assert inspect_backbone(str(folder)).revision == before

    def test_folder_inside_a_model_folder_is_no_obstacle(self, folder: Path) -> None:
        (folder / "tokenizer").mkdir()
        assert inspect_backbone(str(folder)).d_model == 16


class TestLoading:
    """The model that comes out."""

    def test_tied_head_is_the_embedding_table(self, tied_folder: Path) -> None:
        backbone, weights = loaded(tied_folder), load_file(tied_folder / WEIGHTS)
        assert backbone.model.lm_head.weight.data_ptr() == backbone.table_VD.data_ptr()
        assert torch.equal(backbone.table_VD, weights["shared.weight"])

    def test_untied_head_stays_its_own(self, tmp_path: Path) -> None:
        folder = save_tiny_t5(tmp_path / "untied", tied=False)
        backbone, weights = loaded(folder), load_file(folder / WEIGHTS)
        assert torch.equal(backbone.model.lm_head.weight, weights["lm_head.weight"])
        assert torch.equal(backbone.table_VD, weights["shared.weight"])
        assert not torch.equal(backbone.table_VD, backbone.model.lm_head.weight)

    @pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
    def test_loaded_model_answers_as_the_saved_one(self, tmp_path: Path, tied: bool) -> None:
        saved = EncoderDecoder(tiny_t5(tied=tied))
        backbone = loaded(save_tiny_t5(tmp_path / "model", tied=tied))
        ids, target = torch.tensor([[5, 9, 12, 1]]), torch.tensor([[6, 1]])
        mask, target_mask = torch.ones_like(ids, dtype=torch.bool), torch.ones_like(target, dtype=torch.bool)
        losses = [model.target_nll(model.embed(ids), mask, target, target_mask) for model in (saved, backbone)]
        torch.testing.assert_close(*losses, rtol=1e-6, atol=0)  # the loaded one takes shorter ways

    @pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
    def test_dtype_is_the_one_asked_for_whatever_the_file_holds(
        self, tmp_path: Path, held: torch.dtype, precision: str, expected: torch.dtype
    ) -> None:
        folder = save_tiny_t5(tmp_path / "model", dtype=held)
        assert load_file(folder / WEIGHTS)["shared.weight"].dtype == held
        backbone = loaded(folder, precision=precision)
        assert backbone.dtype == backbone.embed(torch.tensor([3])).dtype == expected

    @pytest.mark.parametrize(
        ("device", "flags", "d_model", "expected"),
        [
            ("cuda", "", 128, "bf16"),
            ("cpu", "avx512f avx512_bf16 amx_tile", 512, "bf16"),
            ("cpu", "avx512f avx512_bf16 amx_tile", 128, "fp32"),
            ("cpu", "avx2 avx512f", 512, "fp32"),
        ],
    )
    def test_best_precision_is_bf16_where_the_device_multiplies_it_and_products_are_wide(
        self, monkeypatch: pytest.MonkeyPatch, device: str, flags: str, d_model: int, expected: str
    ) -> None:
        monkeypatch.setattr(Path, "read_text", lambda _: f"flags\t\t: fpu {flags}\n")
        assert best_precision(device, d_model) == expected

    def test_best_precision_of_an_unknown_processor_is_fp32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: Path) -> str:
            raise FileNotFoundError

        monkeypatch.setattr(Path, "read_text", fail)
        assert best_precision("cpu", 512) == "fp32"

    def test_dtype_is_float32_where_nothing_is_asked(self, tmp_path: Path) -> None:
        backbone = loaded(save_tiny_t5(tmp_path / "model", dtype=torch.bfloat16))
        assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}

    def test_loaded_model_is_frozen_and_in_eval_mode(self, tied_folder: Path) -> None:
        model = loaded(tied_folder).model
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_tokenizer_of_a_folder_is_the_one_that_was_saved(self, tied_folder: Path) -> None:
        tokenizer = load_tokenizer(inspect_backbone(str(tied_folder)))
        text = "sentence : the cat sat on a mat"
        assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids == [3, 4, 11, 12, 14, 16, 18, 19, 1]


class TestRefusals:
    """Bad folders, each with its one message."""

    @pytest.mark.parametrize("name", ["./nope", "/nope", "~/nope", "models/of/mine"])
    def test_path_that_is_no_folder(self, name: str) -> None:
        with pytest.raises(BackboneError, match=f"model '{name}': no such folder; give a folder with a config.json"):
            inspect_backbone(name)

    def test_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match=f"model {tmp_path}: no config.json there"):
            inspect_backbone(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"{'a': 1}", b"\xff\xfe{", b'{"model_type": "t5"'])
    def test_config_that_is_not_json(self, folder: Path, content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        with pytest.raises(BackboneError, match=r"config\.json: not readable as JSON"):
            inspect_backbone(str(folder))

    @pytest.mark.parametrize(
        "content",
        [
            "[]",
            "null",
            '{"model_type": "t5"}',
            '{"model_type": "t5", "d_model": null, "vocab_size": 38}',
            '{"model_type": "t5", "d_model": "wide", "vocab_size": 38}',
        ],
    )
    def test_config_of_another_shape(self, folder: Path, content: str) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(BackboneError, match=r"config\.json"):
            inspect_backbone(str(folder))

    @pytest.mark.parametrize("kind", ["bert", "bloom"])
    def test_model_of_another_kind(self, folder: Path, kind: str) -> None:
        edit_config(folder, model_type=kind)
        with pytest.raises(
            BackboneError, match=rf"is of type '{kind}'; adept_tune drives .*\(t5, mt5\) and decoders \(gpt2, llama"
        ):
            inspect_backbone(str(folder))

    def test_config_that_names_no_kind(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        with pytest.raises(BackboneError, match="is of type 'unknown'"):
            inspect_backbone(str(folder))

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
    def test_truncated_weights(self, folder: Path, share: float) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(BackboneError, match=f"model {folder}: cannot load its weights"):
            loaded(folder)

    def test_folder_without_weights(self, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        with pytest.raises(BackboneError, match=f"model {folder}: cannot load its weights"):
            loaded(folder)

    def test_weights_of_another_size_than_the_config_says(self, folder: Path) -> None:
        edit_config(folder, d_model=32)
        with pytest.raises(BackboneError, match=f"model {folder}: cannot load its weights"):
            loaded(folder)

    def test_weights_that_do_not_fit_the_device(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def to(model: T5ForConditionalGeneration, device: str) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

        monkeypatch.setattr(T5ForConditionalGeneration, "to", to)
        with pytest.raises(BackboneError, match=rf"model {folder}: its 0.0 GiB do not fit the GPU; free its memory"):
            loaded(folder)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, folder: Path, value: float) -> None:
        def spoil(weights: dict[str, torch.Tensor]) -> None:
            weights["decoder.final_layer_norm.weight"][3] = value

        edit_weights(folder, spoil)
        with pytest.raises(BackboneError, match=f"model {folder}: its weights hold NaN or infinity"):
            loaded(folder)

    @pytest.mark.parametrize("missing", ["decoder.block.1", "encoder.final_layer_norm", "shared"])
    def test_weights_that_lack_a_tensor(self, folder: Path, missing: str) -> None:
        def spoil(weights: dict[str, torch.Tensor]) -> None:
            for name in [name for name in weights if name.startswith(missing)]:
                del weights[name]

        edit_weights(folder, spoil)
        with pytest.raises(BackboneError, match=missing):
            loaded(folder)

    def test_encoder_without_decoder(self, tied_folder: Path, tmp_path: Path) -> None:
        T5EncoderModel.from_pretrained(tied_folder).save_pretrained(tmp_path)
        with pytest.raises(BackboneError, match="decoder"):
            loaded(tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "{}"])
    def test_damaged_tokenizer(self, folder: Path, content: str) -> None:
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(BackboneError, match=f"model {folder}: no readable tokenizer"):
            load_tokenizer(inspect_backbone(str(folder)))

    def test_folder_without_tokenizer(self, folder: Path) -> None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(BackboneError, match=f"model {folder}: no readable tokenizer"):
            load_tokenizer(inspect_backbone(str(folder)))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_device_that_is_not_there(self, tied_folder: Path) -> None:
        with pytest.raises(BackboneError, match="cuda"):
            load_backbone(inspect_backbone(str(tied_folder)), "cuda")
