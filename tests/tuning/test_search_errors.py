"""What is wrong with a request is said in one message, with exit code 2, before Ray is started."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from adept_tune import retrain
from adept_tune.search import main
from tests.support.search import made_rows, write_rows
from tests.support.tiny import save_tiny_t5

# The rows are made, and SST-2 is known by its size.
pytestmark = pytest.mark.filterwarnings("ignore:task sst2. .* so scores cannot be compared:UserWarning")


class RayStartedError(BaseException):
    """Raised in place of starting Ray; nothing catches it."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its token cache and made rows."""
    folder = tmp_path_factory.mktemp("places")
    save_tiny_t5(folder / "model")
    write_rows(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def _no_ray(places: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing may start Ray, and a default folder would lie in a place of its own."""

    def start(*_: Any, **__: Any) -> None:
        raise RayStartedError

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(places / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert not ray.is_initialized()


@pytest.fixture
def search(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with sound arguments but for those given; the message it ends with."""

    def run(*arguments: str, data: Path = places / "data", model: Path | str = places / "model") -> str:
        sound = ["--task", "sst2", "--model", str(model), "--data-dir", str(data), "--device", "cpu"]
        folder = (
            [] if "--experiment" in arguments or "--resume" in arguments else ["--experiment", str(tmp_path / "new")]
        )
        assert main([*sound, *folder, *arguments]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert err.startswith("error: ")
        assert not (tmp_path / "new" / "spec.json").exists()
        return err.removeprefix("error: ")

    return run


def changed_data(places: Path, folder: Path, split: str, rows: list[dict[str, Any]] | None) -> Path:
    """The made rows with other rows in one split, or without its file."""
    shutil.copytree(places / "data", folder)
    path = folder / "sst2" / f"{split}.jsonl"
    path.unlink()
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_sound_arguments_get_as_far_as_ray(places, tmp_path):
    arguments = ["--model", str(places / "model"), "--data-dir", str(places / "data"), "--device", "cpu"]
    with pytest.raises(RayStartedError):
        main(["--task", "sst2", *arguments, "--experiment", str(tmp_path / "new")])


# -- the task and its rows -------------------------------------------------------------------------------------------


def test_an_unknown_task_lists_those_there_are(search):
    message = search("--task", "sst22")
    assert message.startswith("task 'sst22' is unknown; allowed: cola, sst2, mrpc, rte")
    assert "did you mean 'sst2'?" in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_file_is_named(search, places, tmp_path, split):
    message = search(data=changed_data(places, tmp_path / "data", split, None))
    assert f"{tmp_path}/data/sst2 has no file for split {split}; add one of {split}.jsonl" in message


def test_a_missing_folder_is_named_with_what_belongs_there(search, tmp_path):
    message = search(data=tmp_path / "nowhere")
    assert f"folder {tmp_path}/nowhere/sst2 does not exist; put train.jsonl and validation.jsonl there" in message


@pytest.mark.parametrize(("column", "there"), [("sentence", "text, label"), ("label", "sentence, gold")])
def test_a_missing_column_is_named(search, places, tmp_path, column, there):
    other = {"sentence": "text", "label": "gold"}[column]
    rows = [{other if name == column else name: value for name, value in row.items()} for row in made_rows(20, 0)]
    message = search(data=changed_data(places, tmp_path / "data", "train", rows))
    assert re.search(rf"split train in .*train\.jsonl has no column {column}; it has {there}", message)


@pytest.mark.parametrize("label", [2, -1, None, "positive", 0.5])
def test_a_label_outside_the_set_is_named_with_its_row(search, places, tmp_path, label):
    rows = [row | {"label": label} if index == 7 else row for index, row in enumerate(made_rows(20, 0))]
    if isinstance(label, str):
        rows = [row | {"label": str(row["label"])} for row in rows]  # a column has one type
    message = search(data=changed_data(places, tmp_path / "data", "validation", rows))
    assert re.search(r"validation in .*validation\.jsonl: row 7 \(the first is 0\): field 'label' is ", message)
    assert "allowed: 0, 1" in message


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_row_without_text_is_named(search, places, tmp_path, text):
    rows = [row | {"sentence": text} if index == 7 else row for index, row in enumerate(made_rows(20, 0))]
    message = search(data=changed_data(places, tmp_path / "data", "train", rows))
    assert "row 7 (the first is 0): field 'sentence' is " in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_named(search, places, tmp_path, split):
    message = search(data=changed_data(places, tmp_path / "data", split, []))
    assert f"{split}.jsonl has no rows; give at least one" in message


def test_too_few_rows_to_hold_some_out_are_told(search, places, tmp_path):
    message = search(data=changed_data(places, tmp_path / "data", "train", made_rows(9, 0)))
    assert "has 9 rows; give at least 10" in message


def test_what_is_not_json_is_named(search, places, tmp_path):
    data = changed_data(places, tmp_path / "data", "train", made_rows(20, 0))
    (data / "sst2" / "train.jsonl").write_text("sentence\tlabel\nvery good\t1\n")
    assert f"{data}/sst2/train.jsonl cannot be read as jsonl" in search(data=data)


def test_labels_that_the_tokenizer_cannot_write_are_told(search):
    assert "words" in search("--labels", "words")  # neither "negative" nor "positive" is in the tiny vocabulary


def test_a_space_over_labels_that_the_tokenizer_cannot_write_is_told(search):
    assert "words" in search("--space", "labels")


# -- the model -------------------------------------------------------------------------------------------------------


def test_a_model_folder_without_a_configuration_is_told(search, tmp_path):
    (tmp_path / "empty").mkdir()
    message = search(model=tmp_path / "empty")
    assert message == f"model {tmp_path}/empty: no config.json there; give a folder written by save_pretrained\n"


def test_a_model_folder_that_does_not_exist_is_told(search):
    assert "model './nowhere': no such folder" in search(model="./nowhere")


def test_a_model_that_is_not_at_hand_without_a_network_is_told_with_the_way_out(search):
    message = search(model="nobody/nothing")
    assert "nobody/nothing" in message
    assert "--model DIR" in message
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(
    ("config", "said"),
    [('{"model_type": "bert"}', "is of type 'bert'; adept_tune drives"), ("{", "not readable as JSON")],
)
def test_a_model_of_another_kind_is_told(search, places, tmp_path, config, said):
    shutil.copytree(places / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config)
    assert said in search(model=tmp_path / "model")


def test_a_model_without_a_tokenizer_is_told(search, places, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(places / "model" / name, tmp_path / "model" / name)
    assert f"model {tmp_path}/model: no readable tokenizer" in search(model=tmp_path / "model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(search):
    assert search("--device", "cuda") == (
        "--device cuda: no GPU on this machine; use --device cpu, or join a cluster with --address\n"
    )


# -- the space -------------------------------------------------------------------------------------------------------


def test_an_unknown_space_lists_those_there_are(search):
    message = search("--space", "nosuch")
    assert message.startswith(
        "space 'nosuch' is unknown; choose one of adept, adept-76800, adept-demo, bitfit, dept, dept-demo, "
    )


def test_a_space_file_that_is_missing_is_told(search, tmp_path):
    assert search("--space", str(tmp_path / "own.yaml")) == f"space {tmp_path}/own.yaml: no such file\n"


def test_an_unknown_parameter_is_told_with_a_hint(search, tmp_path):
    (tmp_path / "own.yaml").write_text("extends: adept\nparameters: {promt_length: 3}\n")
    assert "promt_length: unknown parameter (did you mean prompt_length?)" in search(
        "--space", str(tmp_path / "own.yaml")
    )


def test_a_budget_below_one_prompt_token_is_told(search, tmp_path):
    (tmp_path / "own.yaml").write_text("extends: adept-76800\nbudget: 31\n")
    assert "budget=31: below one prompt token, which takes 32 numbers at d=16" in search(
        "--space", str(tmp_path / "own.yaml")
    )


def test_the_grid_of_an_infinite_space_is_told(search):
    assert "relative_prompt_lr: [0.004, 0.4, log] has no finite set of values; the grid sampler needs" in search(
        "--sampler", "grid"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "ffn_lr=0"], "ffn_lr: 0: Input should be greater than 0"),
        (["--set", "dropout=1"], "dropout: 1: Input should be less than 1"),
        (["--set", "labels=colours"], "labels: 'colours': Input should be 'digits' or 'words'"),
        (["--set", "rank=3"], "rank: unknown parameter"),  # DePT's
        (["--set", "nosuch=3"], "--set nosuch=3: unknown key 'nosuch'; known: "),
        (["--set", "ffn_lr"], "--set ffn_lr: give KEY=VALUE"),
        (["--set", "reduction_factor=1"], "--set reduction_factor=1.0: Input should be greater than 1"),
        (["--set", "max_failures=-1"], "--set max_failures=-1: Input should be greater than or equal to 0"),
        (["--method", "adept", "--space", "dept"], "--method adept: the space dept is for dept"),
        (["--method", "nosuch"], "'nosuch' is unknown; choose one of adept"),
    ],
)
def test_settings_that_cannot_be_are_told(search, arguments, said):
    assert said in search(*arguments)


def test_a_setting_that_is_not_yaml_is_told(search):
    assert "--set ffn_lr=[1" in search("--set", "ffn_lr=[1")


@pytest.mark.parametrize("method", ["nosuch", "adept-76800", "labels"])
def test_an_unknown_method_lists_the_methods(search, method):
    message = search("--method", method)
    assert f"method {method!r} is unknown; choose one of adept, bitfit, dept, full, " in message


# -- how much --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials", "0"], "--trials=0: Input should be greater than or equal to 1"),
        (["--trials", "-3"], "--trials=-3: "),
        (["--max-steps", "0"], "--max-steps=0: "),
        (["--batch-size", "0"], "--batch-size=0: "),
        (["--finalists", "0"], "--finalists=0: "),
        (["--seeds", "0"], "--seeds=0: "),
        (["--seed", "-1"], "--seed=-1: "),
        (["--trials-per-gpu", "0"], "--trials-per-gpu 0: give a whole number of at least 1, or auto"),
        (["--trials-per-gpu", "many"], "--trials-per-gpu many: give a whole number of at least 1, or auto"),
        (["--time-budget", "soon"], "--time-budget soon: give a time above 0 such as 45s, 90m or 8h"),
        (["--time-budget", "0h"], "--time-budget 0h: give a time above 0"),
        (["--trials-per-gpu", "100000"], "--trials-per-gpu=100000: Input should be less than or equal to 1024"),
        (["--set", "tokens_per_pass=0"], "--set tokens_per_pass=0: Input should be greater than or equal to 1"),
        (
            ["--set", "reduction_factor=1e200"],
            "--set reduction_factor=1e+200: Input should be less than",
        ),
    ],
)
def test_an_amount_that_cannot_be_is_told(search, arguments, said):
    assert said in search(*arguments)


@pytest.mark.parametrize("flag", ["--finalists", "--seeds"])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_an_amount_of_a_retraining_that_cannot_be_is_told(flag, number, tmp_path, capsys):
    assert retrain.main(["--experiment", str(tmp_path), flag, number]) == 2
    assert f"{flag} {number}: give a whole number of at least 1" in capsys.readouterr().err


def test_several_amounts_are_told_together(search):
    message = search("--trials", "0", "--batch-size", "0")
    assert "--trials=0: " in message
    assert "--batch-size=0: " in message


def test_a_warm_up_longer_than_a_trial_is_told(search):
    assert "warmup_steps=500" in search("--max-steps", "120", "--set", "warmup_steps=500")


@pytest.mark.parametrize(
    "arguments", [["--trials", "many"], ["--scheduler", "nosuch"], ["--nosuch"], ["--device", "tpu"]]
)
def test_what_argparse_refuses_is_told_with_the_same_code(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--task", "sst2", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_task_must_be_given(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "--task" in capsys.readouterr().err


# -- where -----------------------------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_folder_is_told(search, tmp_path):
    (tmp_path / "file").write_text("")
    assert search("--experiment", str(tmp_path / "file")) == (
        f"--experiment {tmp_path}/file: is a file; give a folder\n"
    )


def test_a_file_in_the_way_of_the_folder_is_told(search, tmp_path):
    (tmp_path / "file").write_text("")
    message = search("--experiment", str(tmp_path / "file" / "sub" / "new"))
    assert message.startswith(f"--experiment {tmp_path}/file/sub/new: cannot write in {tmp_path}/file; give a folder")


def test_a_program_in_the_way_of_the_folder_is_told(search, tmp_path):
    (tmp_path / "program").touch(mode=0o755)
    assert "--experiment" in search("--experiment", str(tmp_path / "program" / "new"))


def test_a_warm_up_that_a_space_may_make_longer_than_a_trial_is_told(search, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("extends: adept\nparameters:\n  warmup_steps: {low: 0, high: 1000, step: 10}\npoints: []\n")
    assert "warmup_steps=1000" in search("--max-steps", "500", "--space", str(space))


def test_a_folder_whose_name_is_too_long_is_told(search, tmp_path):
    assert "File name too long; give another folder" in search("--experiment", str(tmp_path / ("x" * 300)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(search, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    message = search("--experiment", str(tmp_path / "locked" / "new"))
    assert f"cannot write in {tmp_path}/locked; give a folder you may write in" in message


def test_a_folder_with_an_experiment_is_not_written_over(search, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "spec.json").write_text("{}")
    message = search("--experiment", str(tmp_path / "old"))
    assert message.startswith(f"--experiment {tmp_path}/old: an experiment lives there already")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["spec.json"]


def test_a_tracking_server_that_is_dead_is_told(search):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, and listened to by nobody
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        message = search("--tracking-uri", uri)
    assert message.startswith(f"--tracking-uri {uri}: no server answers (")
    assert "keep the runs in the experiment folder: --tracking-uri sqlite:///" in message


def test_a_tracking_folder_is_refused(search, tmp_path):
    assert f"--tracking-uri file://{tmp_path}: runs are kept by a server" in search(
        "--tracking-uri", f"file://{tmp_path}"
    )


@pytest.mark.parametrize("uri", ["nosuch://bucket/path", "FILE"])
def test_a_storage_that_cannot_be_is_told(search, tmp_path, uri):
    (tmp_path / "file").write_text("")
    storage = uri.replace("FILE", str(tmp_path / "file"))
    assert f"--storage {storage}: " in search("--storage", storage)


def test_nothing_to_resume_is_told(search, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no experiment there (spec.json is missing)" in search("--resume", str(tmp_path / "empty"))
    assert "no experiment of this search under runs/" in search("--resume")
