"""Several methods searched on Ray with a tiny model, input-side and inside the model: the same effort, one table."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adept_tune import search
from adept_tune.adapter import load_adapter
from adept_tune.tasks import get_task
from adept_tune.tasks.rows import load_splits
from adept_tune.tuning.journal import Journal
from adept_tune.tuning.spec import ADAPTER, JOURNAL
from tests.support.search import save_answering_t5, write_rows
from tests.tuning.test_search_on_ray import surroundings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:task sst2. .* so scores cannot be compared:UserWarning"),  # the rows are made
]

METHODS = ("prompt-tuning", "lora", "full")
TRIALS, STEPS, SEEDS = 2, 8, 2


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    places = tmp_path_factory.mktemp("compared")
    save_answering_t5(places / "model")
    write_rows(places / "data", num_train=300, num_validation=40)
    with surroundings(places):
        assert search.main([*command(places), "--experiment", str(places / "run")]) == 0
        yield places


def command(places: Path) -> list[str]:
    return [
        *("--task", "sst2", "--model", str(places / "model"), "--data-dir", str(places / "data")),
        *("--method", ",".join(METHODS), "--trials", str(TRIALS), "--max-steps", str(STEPS), "--batch-size", "4"),
        *("--scheduler", "none", "--finalists", "1", "--seeds", str(SEEDS), "--device", "cpu", "--precision", "fp32"),
    ]


def events(places: Path, method: str, kind: str) -> list[dict[str, object]]:
    return [event for event in Journal(places / "run" / method / JOURNAL).read() if event["event"] == kind]


@pytest.mark.timeout(900)
def test_every_method_gets_the_same_effort_and_a_line_of_the_table(places: Path) -> None:
    table = (places / "run" / "comparison.md").read_text()
    for method in METHODS:
        assert len(events(places, method, "proposed")) == TRIALS
        assert len(events(places, method, "tested")) == SEEDS
        assert f"| {method} | " in table


def test_the_adapter_of_each_predicts_what_was_tested(places: Path) -> None:
    task = get_task("sst2")
    splits = load_splits(task, places / "data")
    rows = [splits.test.row(i) for i in range(len(splits.test))]
    for method in METHODS:
        (winner,) = events(places, method, "winner")
        (tested,) = (event for event in events(places, method, "tested") if event["seed"] == winner["seed"])
        assert load_adapter(places / "run" / method / ADAPTER).score(rows).score.value == tested["score"]


@pytest.mark.timeout(900)
def test_a_resume_of_what_is_done_does_nothing_again(places: Path) -> None:
    before = {method: len(events(places, method, "reported")) for method in METHODS}
    table = (places / "run" / "comparison.md").read_text()
    assert search.main([*command(places), "--resume", str(places / "run")]) == 0
    assert {method: len(events(places, method, "reported")) for method in METHODS} == before
    assert (places / "run" / "comparison.md").read_text() == table
