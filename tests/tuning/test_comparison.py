"""Several methods compared: equal effort, pairs by seed, a resume that goes on, and what is refused at once."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from adept_tune.console import Console
from adept_tune.errors import AdeptError, SpecError
from adept_tune.tuning import comparison
from adept_tune.tuning.comparison import COMPARISON, TABLE, Difference, compared, run_comparison, table_of
from adept_tune.tuning.journal import Journal
from adept_tune.tuning.search import Request
from adept_tune.tuning.spec import JOURNAL, SearchSpec
from tests.support.search import spec_fields

SCORES = {"adept": [0.80, 0.70, 0.75], "lora": [0.84, 0.71, 0.79], "full": [0.6, 0.6, 0.6]}
REQUEST = Request(task="demo", method="adept,lora", device="cpu")


def write_search(folder: Path, method: str, scores: list[float], **changes: Any) -> None:
    """A finished search as its files tell it; its winner is trial 1."""
    folder.mkdir(parents=True, exist_ok=True)
    SearchSpec.model_validate(spec_fields(method=method, task="demo", **changes)).write(folder)
    journal = Journal(folder / JOURNAL)
    params = {"lr": 1e-3}
    for number in range(2):
        journal.append({"event": "proposed", "trial": number, "point": {}, "params": params, "num_parameters": 1234})
    journal.append({"event": "retraining", "finalists": [1, 0], "seeds": len(scores)})
    for trial, shift in ((0, -0.5), (1, 0.0)):  # the other finalist must not be taken for the winner
        for seed, score in enumerate(scores, start=1):
            tested = {"score": score + shift, "standard_error": 0.02}
            journal.append({"event": "tested", "trial": trial, "seed": seed} | tested)
    spread = {"mean": float(np.mean(scores)), "sd": float(np.std(scores)), "se": 0.01}
    journal.append({"event": "winner", "trial": 1, "seed": 2, "params": params, "validation": spread, "test": spread})


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Searches that end at once; gives what was asked of them."""
    asked: list[Request] = []

    def run_search(request: Request, console: Console) -> int:
        asked.append(request)
        assert request.experiment is not None
        assert request.method is not None
        if not request.dry_run:
            write_search(request.experiment, request.method, SCORES[request.method])
        return 0

    monkeypatch.setattr(comparison, "run_search", run_search)
    return asked


def run(request: Request) -> tuple[int, str]:
    stream = StringIO()
    return run_comparison(request, Console(stream)), stream.getvalue()


# -- figures -----------------------------------------------------------------------------------------------------


def test_a_difference_is_the_paired_t_interval_of_scipy() -> None:
    one, other = (dict(enumerate(SCORES[name])) for name in ("lora", "adept"))
    found = Difference.of(one, other)
    gains = np.array(SCORES["lora"]) - np.array(SCORES["adept"])
    low, high = stats.ttest_rel(SCORES["lora"], SCORES["adept"]).confidence_interval(0.95)
    assert found is not None
    assert found.half_width is not None
    assert found.mean == pytest.approx(gains.mean())
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert str(found) == f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def test_a_difference_is_paired_over_the_seeds_that_both_have() -> None:
    found = Difference.of({1: 0.5, 2: 0.7, 3: 0.9}, {2: 0.6, 3: 0.6, 4: 0.1})
    assert found is not None
    assert (round(found.mean, 9), found.num_seeds) == (0.2, 2)
    assert Difference.of({1: 0.5}, {2: 0.6}) is None


def test_one_seed_has_no_interval() -> None:
    assert str(Difference.of({1: 0.5}, {1: 0.25})) == "+0.2500 (one seed)"


def test_winners_are_read_from_the_journals_and_lost_methods_left_out(tmp_path: Path) -> None:
    for method in ("adept", "lora"):
        write_search(tmp_path / method, method, SCORES[method])
    (tmp_path / "full").mkdir()
    SearchSpec.model_validate(spec_fields(method="full", task="demo")).write(tmp_path / "full")
    winners = compared(tmp_path, ["adept", "full", "lora"])
    assert [winner.method for winner in winners] == ["adept", "lora"]
    assert winners[1].by_seed == {1: 0.84, 2: 0.71, 3: 0.79}
    heads, rows = table_of(winners, "accuracy")
    assert heads[4] == "test less adept's"
    assert rows[0][4] == ""
    assert rows[1][:4] == ["lora", "1,234", "0.7800 ± 0.0100", "0.7800 ± 0.0100"]


@pytest.mark.parametrize(
    "changed", [{"trials": 9}, {"max_steps": 99}, {"data_fingerprint": "g"}, {"reduction_factor": 2.0}, {"seed": 3}]
)
def test_unequal_searches_are_not_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_search(tmp_path / "adept", "adept", SCORES["adept"])
    write_search(tmp_path / "lora", "lora", SCORES["lora"], **changed)
    with pytest.raises(SpecError, match=f"{next(iter(changed))} is .* for adept and .* for lora"):
        compared(tmp_path, ["adept", "lora"])


# -- searches ----------------------------------------------------------------------------------------------------


def test_methods_get_equal_effort_in_folders_of_their_own(searched: list[Request], tmp_path: Path) -> None:
    code, said = run(replace(REQUEST, experiment=tmp_path / "run", trials=4, max_steps=80, seeds=3))
    assert code == 0
    assert [request.experiment for request in searched] == [tmp_path / "run" / m for m in ("adept", "lora")]
    effort = {replace(request, method=None, experiment=None) for request in map(_hashable, searched)}
    assert len(effort) == 1
    written = (tmp_path / "run" / TABLE).read_text()
    assert "| lora | 1,234 |" in written
    assert "+0.0300 [" in written
    assert "+0.0300 [" in said


def _hashable(request: Request) -> Request:
    return replace(request, fixed=None)


def test_a_resume_goes_on_where_it_was(searched: list[Request], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(replace(REQUEST, experiment=folder))
    (folder / "lora" / "spec.json").unlink()  # as if it had not begun
    (folder / "lora" / "journal.jsonl").unlink()
    searched.clear()
    code, _ = run(replace(REQUEST, resume=folder))
    assert code == 0
    assert [request.resume for request in searched] == [folder / "adept", None]
    with pytest.raises(SpecError, match="a comparison lives there already"):
        run(replace(REQUEST, experiment=folder))
    with pytest.raises(SpecError, match="no comparison of lora, adept on demo"):
        run(replace(REQUEST, method="lora,adept", resume=folder))


def test_a_resume_without_a_folder_takes_the_newest_of_the_same_command(
    searched: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, methods in (("a", "adept,lora"), ("b", "adept,lora"), ("c", "adept,full")):
        run(replace(REQUEST, method=methods, experiment=Path("runs") / name))
    searched.clear()
    run(replace(REQUEST, resume=Path()))
    assert [request.resume for request in searched] == [Path("runs/b/adept"), Path("runs/b/lora")]


def test_an_interrupt_says_how_the_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_search(request: Request, console: Console) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_search", run_search)
    stream = StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_comparison(replace(REQUEST, experiment=tmp_path / "run"), Console(stream))
    assert f"--resume {tmp_path / 'run'}" in stream.getvalue()
    assert (tmp_path / "run" / COMPARISON).exists()


def test_a_dry_run_writes_nothing(searched: list[Request], tmp_path: Path) -> None:
    assert run(replace(REQUEST, experiment=tmp_path / "run", dry_run=True))[0] == 0
    assert len(searched) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "adept,nosuch"}, "method 'nosuch' is unknown; choose one of adept"),
        ({"method": "lora,lora"}, "names a method twice"),
        ({"method": ","}, "names no method"),
        ({"space": "adept"}, "--space: is for one method"),
        ({"init_from": Path("a")}, "--init-from: is for one method"),
        ({"time_budget_s": 60.0}, "--time-budget: would give methods unequal effort"),
        ({"task": "sst2", "trials": 3}, "give --trials and --max-steps"),
        ({"fixed": {"rank": 3}}, "--set rank: method adept has no such setting"),
        ({"fixed": {"dropout": 0.0}}, "--set dropout: method lora has no such setting"),
    ],
)
def test_what_cannot_be_equal_is_refused_before_any_search(
    searched: list[Request], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdeptError, match=said):
        run(replace(REQUEST, experiment=tmp_path / "run", **changes))
    assert searched == []
    assert not (tmp_path / "run").exists()


def test_a_setting_of_all_methods_may_be_fixed(searched: list[Request], tmp_path: Path) -> None:
    assert run(replace(REQUEST, experiment=tmp_path / "run", fixed={"weight_decay": 0.1}))[0] == 0
    assert [request.fixed for request in searched] == [{"weight_decay": 0.1}] * 2
