"""Out of memory, or told to halt: a step is done in smaller passes or not at all, and nothing of it is lost."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from adept_tune.engine.memory import Need, left_to_group, ran_out
from adept_tune.engine.reading import Halted
from tests.engine.test_engine import config
from tests.support.data import made_engine

TRIALS = [
    config(0, dropout=0.2, batch_size=8, prompt_length=5, width=2),
    config(1, dropout=0.1, batch_size=3, prompt_length=0, width=4),
    config(2, dropout=0.3, batch_size=7, prompt_length=2, width=1, labels="words"),
]
MESSAGES = [
    "DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes",
    "DefaultCPUAllocator: can't allocate memory",
]


class Cramped:
    """A backbone that has memory for some rows of a pass only.

    Args:
        engine: Whose backbone.
        most: Rows that fit.
        method: Which of its methods runs out.
        error: What is raised then.
    """

    def __init__(self, engine, most: int, method: str, error: Exception) -> None:
        self.most, self.error, self.seen = most, error, []
        self._call = getattr(engine.backbone, method)
        setattr(engine.backbone, method, self)

    def __call__(self, embeds, *others):
        self.seen.append(len(embeds))
        if len(embeds) > self.most:
            raise self.error
        return self._call(embeds, *others)


def advance(engine, slots, num_steps=5):
    for _ in range(num_steps):
        engine.step(slots)
    return [engine.state(slot) for slot in slots]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), *map(RuntimeError, MESSAGES)]
)
@pytest.mark.parametrize("most", [17, 8, 5, 1])
def test_a_step_that_does_not_fit_is_done_in_smaller_passes(most, error):
    roomy, cramped = made_engine(dtype=torch.float64), made_engine(dtype=torch.float64)
    expected = advance(roomy, [roomy.join(trial) for trial in TRIALS])
    backbone = Cramped(cramped, most, "target_nll", error)
    found = advance(cramped, [cramped.join(trial) for trial in TRIALS])
    for state, other in zip(found, expected, strict=True):
        assert state.loss_sum == pytest.approx(other.loss_sum, abs=1e-9)
        for name, tensor in state.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[name], rtol=0, atol=1e-8)
    failed = [rows for rows in backbone.seen if rows > most]
    assert failed
    assert backbone.seen[-1] <= most
    assert len(failed) <= 7  # what it has learnt it keeps


def test_one_row_that_does_not_fit_is_an_error_and_changes_nothing():
    engine = made_engine()
    slots = [engine.join(trial) for trial in TRIALS]
    before = [engine.state(slot).to_bytes() for slot in slots]
    Cramped(engine, 0, "target_nll", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        engine.step(slots)
    assert [engine.state(slot).to_bytes() for slot in slots] == before


def recomputes(engine) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in engine.backbone.model.modules())


def test_one_row_that_does_not_fit_is_done_with_less_kept_of_each_layer():
    roomy, cramped = made_engine(dtype=torch.float64), made_engine(dtype=torch.float64)
    expected = advance(roomy, [roomy.join(trial) for trial in TRIALS])
    target_nll, tried = cramped.backbone.target_nll, []

    def fits_only_so(embeds, *others):
        tried.append(recomputes(cramped))
        if not tried[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return target_nll(embeds, *others)

    cramped.backbone.target_nll = fits_only_so
    found = advance(cramped, [cramped.join(trial) for trial in TRIALS])
    assert tried.count(False) < 10  # what it has learnt it keeps
    assert cramped.limits.tokens_per_pass is None  # and may fill its passes again
    assert not recomputes(cramped)  # between steps, where evaluations need their caches
    for state, other in zip(found, expected, strict=True):
        for name, tensor in state.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[name], rtol=0, atol=1e-8)


def test_another_error_is_not_taken_for_it():
    engine = made_engine()
    slots = [engine.join(trial) for trial in TRIALS]
    backbone = Cramped(engine, 0, "target_nll", RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        engine.step(slots)
    assert len(backbone.seen) == 1
    assert engine.limits.tokens_per_pass is None
    assert not ran_out(ValueError("not enough memory"))


@pytest.mark.parametrize("most", [60, 9])
def test_an_evaluation_that_does_not_fit_is_done_in_smaller_parts(most):
    engine = made_engine()
    slots = [engine.join(trial) for trial in TRIALS]
    expected = engine.evaluate(slots)
    backbone = Cramped(engine, most, "read", torch.OutOfMemoryError("CUDA out of memory"))
    found = engine.evaluate(slots)
    assert [evaluation.texts for evaluation in found] == [evaluation.texts for evaluation in expected]
    np.testing.assert_allclose([e.loss for e in found], [e.loss for e in expected], atol=1e-5)
    assert max(backbone.seen) > most
    assert backbone.seen[-1] <= most


def test_rows_of_a_batch_in_pieces_equal_the_batch():
    whole, pieces = made_engine(dtype=torch.float64), made_engine(dtype=torch.float64, tokens_per_pass=30)
    for one, other in zip(*(advance(e, [e.join(trial) for trial in TRIALS]) for e in (whole, pieces)), strict=True):
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[name], rtol=0, atol=1e-8)


def test_two_passes_tell_what_a_pass_takes():
    need = Need.measured((100, 1_500.0), (300, 3_500.0))
    assert (need.fixed_bytes, need.token_bytes, need.of(1_000)) == (500.0, 10.0, 10_500.0)
    assert need.tokens_within(10_509.0) == 1_000
    assert need.tokens_within(0.0) == 1  # a row is read whatever is told
    assert Need.measured((100, 500.0), (300, 400.0)).tokens_within(1.0) is None  # more tokens took no more


def test_a_probe_of_memory_trains_nothing():
    engine = made_engine()
    slot = engine.join(TRIALS[0])
    before = engine.state(slot).to_bytes()
    need = engine.need(slot)
    assert engine.state(slot).to_bytes() == before
    assert min(need.fixed_bytes, need.token_bytes) >= 0


def test_a_halted_step_or_evaluation_changes_nothing():
    engine = made_engine(tokens_per_pass=50)
    slots = [engine.join(trial) for trial in TRIALS]
    advance(engine, slots, 2)
    before = [engine.state(slot).to_bytes() for slot in slots]
    asked = []
    engine._halted = lambda: asked.append(True) or len(asked) > 2
    with pytest.raises(Halted):
        engine.step(slots)
    assert len(asked) == 3  # after two passes of this step
    with pytest.raises(Halted):
        engine.evaluate(slots)
    assert [engine.state(slot).to_bytes() for slot in slots] == before


def test_with_all_room_made_a_step_is_bitwise_the_same_whoever_was_here_before():
    fresh, used = (made_engine(widest=(9, 6)) for _ in range(2))
    wide = used.join(config(5, prompt_length=9, width=6))
    used.step([wide])
    used.leave(wide)
    blobs = [advance(engine, [engine.join(TRIALS[0])])[0].to_bytes() for engine in (fresh, used)]
    assert blobs[0] == blobs[1]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is told, and Linux tells what is resident")
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_tightest_group_leaves(tmp_path, version):
    top, files, cached = tmp_path / "root", ("memory.max", "memory.current"), "inactive_file"
    if version == 1:
        top, files = top / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        cached = "total_inactive_file"

    def group(path: str, most: object, taken: int) -> None:
        (top / path).mkdir(parents=True)
        for name, text in zip(files, (most, taken), strict=True):
            (top / path / name).write_text(f"{text}\n")
        (top / path / "memory.stat").write_text(f"anon 1\n{cached} 5\n")

    told = tmp_path / "cgroup"
    told.write_text("1:cpu:/job\n" + ("0::" if version == 2 else "4:hugetlb,memory:") + "/job/step/task\n")
    assert left_to_group(tmp_path / "absent", tmp_path / "root") == float("inf")
    assert left_to_group(told, tmp_path / "root") == float("inf")
    group("job", 1000, 400)
    assert left_to_group(told, tmp_path / "root") == 605  # what only caches files can be had
    group("job/step", "max" if version == 2 else 2**63 - 4096, 300)
    assert left_to_group(told, tmp_path / "root") == 605
    group("job/step/task", 310, 300)
    assert left_to_group(told, tmp_path / "root") == 15
    (top / "job" / "memory.stat").unlink()
    assert left_to_group(told, tmp_path / "root") == 15
    group("elsewhere", 1, 1)
    assert left_to_group(told, tmp_path / "root") == 15


def test_a_process_keeps_what_it_frees_until_it_trims():
    program = """
from threading import Thread
import torch
from adept_tune.engine.memory import keep_freed, taken_bytes, trim
cpu = torch.device("cpu")
def run():
    before = taken_bytes(cpu)
    pieces = [torch.ones(20 * 2**18) for _ in range(10)]
    del pieces
    kept = taken_bytes(cpu) - before
    trim(cpu)
    print(kept / 2**20, (taken_bytes(cpu) - before) / 2**20)
keep_freed()
thread = Thread(target=run)  # a lane is one
thread.start()
thread.join()
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    kept, left = map(float, told.split())
    assert kept > 190
    assert left < 100
