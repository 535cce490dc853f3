"""The benchmarks: what they compare is comparable, and every command says what it does."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "experiments" / "bench"
COMMANDS = ("throughput", "search", "churn", "official", "precision", "lengths", "latency", "parts")


@pytest.fixture
def workload(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import workload

    return workload


@pytest.fixture
def official(workload: ModuleType) -> ModuleType:
    import official

    return official


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_it_does(command: str) -> None:
    done = subprocess.run([sys.executable, str(BENCH / f"{command}.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stderr == ""


def test_a_gpu_that_is_not_there_is_refused(workload: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit) as caught:
        workload.prepared(workload.parser("").parse_args(["--device", "cuda"]))
    assert caught.value.code == 2
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["cola", "rte"])
def test_lengths_are_those_of_the_task(workload: ModuleType, task: str) -> None:
    drawn = workload.draw_lengths(task, 20_000, seed=0)
    counts = {int(n): count for n, count in workload.json.loads(workload.LENGTHS.read_text())[task].items()}
    mean = sum(n * count for n, count in counts.items()) / sum(counts.values())
    assert set(drawn) <= set(counts)
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.02)


def test_a_timing_is_a_median_with_half_its_range(workload: ModuleType) -> None:
    assert str(workload.Timing((2.0, 1.0, 4.0))) == "2 ± 75%"


def test_sides_take_turns(workload: ModuleType) -> None:
    order: list[str] = []

    def side(name: str, value: float) -> float:
        order.append(name)
        return value

    found = workload.in_turns(2, {"a": lambda: side("a", 1.0), "b": lambda: side("b", 2.0)})
    assert order == ["a", "b", "a", "b"]
    assert found["b"].values == (2.0, 2.0)


def test_the_published_step_has_our_loss(workload: ModuleType, official: ModuleType, tmp_path: Path) -> None:
    info = workload.find_model("demo", tmp_path)
    data = workload.make_data(info, "cola", num_rows=64, num_validation=4)
    config = workload.trial(info, 8).model_copy(update={"dropout": 0.0})
    engine = workload.make_engine(info, data, 1, "cpu", "fp32")
    slot = engine.join(config)
    tensors = engine.state(slot).tensors
    theirs = official.PaddedAdept(engine.backbone.model, config)
    with torch.no_grad():
        theirs.prompt.copy_(tensors["prompt"])
        theirs.down.weight.copy_(tensors["ffn_w1"].T)
        theirs.down.bias.copy_(tensors["ffn_b1"])
        theirs.up.bias.zero_()
    rows = official.batch_rows(0, 0, 8, len(data.train))
    ids, mask = official.padded(data.train.sources, rows, data.pad_id, official.SOURCE_LENGTH, "cpu")
    labels, _ = official.padded(data.train.targets["digits"], rows, -100, 2, "cpu")
    assert ids.shape == (8, official.SOURCE_LENGTH)
    engine.step([slot])
    assert theirs(ids, mask, labels).item() == pytest.approx(engine.train_loss(slot), rel=1e-4)
