"""What is replayed of a pass gives what the pass gives. A GPU's graph is stood in for by its function, called again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adept_tune.engine.config import TrialConfig
from adept_tune.engine.graphs import Outputs, PassGraphs, nll_and_gradient
from tests.support.data import made_engine


class Captures:
    """Counts what is captured and replayed; a replay writes where the capture did."""

    def __init__(self, refused: Exception | None = None) -> None:
        self.captured = self.replayed = 0
        self.refused = refused

    def __call__(self, compute: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        self.captured += 1
        if self.refused is not None:
            raise self.refused
        outputs = compute()

        def replay() -> None:
            self.replayed += 1
            for place, tensor in zip(outputs, compute(), strict=True):
                place.copy_(tensor)

        for place in outputs:  # a capture does nothing yet
            place.fill_(float("nan"))
        return replay, outputs


BACKBONE = made_engine(dtype=torch.float64).backbone


def asked(num_rows: int, seed: int, short_targets: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    embeds = torch.randn(num_rows, 6, BACKBONE.d_model, generator=draw, dtype=torch.float64)
    mask = torch.ones(num_rows, 6, dtype=torch.bool)
    mask[0, 3 + seed % 3 :] = False
    target = torch.randint(3, BACKBONE.vocab_size, (num_rows, 3), generator=draw)
    target_mask = torch.ones(num_rows, 3, dtype=torch.bool)
    if short_targets:
        target_mask[seed % num_rows, 2] = False
    return embeds, mask, target, target_mask


def assert_equal(found: Outputs, expected: Outputs) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_replays_give_what_passes_give_whatever_came_between():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures)
    for seed in range(12):
        question = asked(2 + seed % 3, seed, short_targets=seed % 2 == 0)
        assert_equal(graphs.run(*question), nll_and_gradient(BACKBONE, *question))
    assert (captures.captured, captures.replayed) == (3, 9)


def test_a_shape_is_captured_when_it_recurs_and_anew_when_it_was_forgotten():
    captures = Captures()
    graphs = PassGraphs(BACKBONE, captures, most=2)
    told = []
    for num_rows in (2, 2, 3, 2, 4, 3, 3, 2):
        graphs.run(*asked(num_rows, 0))
        told.append(captures.captured)
    assert told == [0, 1, 1, 1, 1, 1, 2, 2]
    graphs.forget()
    for expected in (2, 3):
        graphs.run(*asked(3, 0))
        assert captures.captured == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("not permitted")])
def test_where_a_capture_fails_passes_go_on_without(error):
    captures = Captures(error)
    graphs = PassGraphs(BACKBONE, captures)
    question = asked(2, 0)
    graphs.run(*question)
    with pytest.warns(UserWarning, match=f"one by one from here on: {error}"):
        again = graphs.run(*question)
    assert_equal(again, nll_and_gradient(BACKBONE, *question))
    for _ in range(3):
        graphs.run(*question)
    assert captures.captured == 1


def test_trials_learn_the_same_numbers_in_replayed_passes():
    states = []
    for replayed in (False, True):
        engine = made_engine(dtype=torch.float64, tokens_per_pass=60)
        captures = Captures()
        engine.graphs = PassGraphs(engine.backbone, captures) if replayed else None
        slots = [engine.join(TrialConfig(prompt_length=3 + n, width=2, batch_size=6, seed=n)) for n in range(3)]
        for company in (slots, slots, slots, slots[:2], slots[:2], slots):
            engine.step(company)
        assert not replayed or captures.replayed > 3
        states.append([engine.state(slot).tensors for slot in slots])
    for plain, replayed in zip(*states, strict=True):
        for name, tensor in plain.items():
            torch.testing.assert_close(replayed[name], tensor, rtol=0, atol=1e-10)


def test_gradient_checkpointing_is_not_captured_and_running_out_of_memory_forgets(monkeypatch):
    captures = Captures()
    engine = made_engine(dtype=torch.float64)
    engine.graphs = PassGraphs(engine.backbone, captures)
    slot = engine.join(TrialConfig(prompt_length=3, width=2, batch_size=4))
    target_nll, most = type(engine.backbone).target_nll, [4]

    def cramped(backbone, embeds, *others):
        if len(embeds) > most[0]:
            raise torch.OutOfMemoryError("no memory")
        return target_nll(backbone, embeds, *others)

    monkeypatch.setattr(type(engine.backbone), "target_nll", cramped)
    engine.limits.tokens_per_pass = None
    engine.step([slot])
    forgotten = []
    monkeypatch.setattr(engine.graphs, "forget", lambda: forgotten.append(True))
    most[0] = 2
    engine.step([slot])
    assert forgotten
    monkeypatch.setattr(type(engine.limits), "recomputing", True)
    before = captures.replayed
    engine.step([slot])
    assert captures.replayed == before
