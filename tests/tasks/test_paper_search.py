"""Whole searches on tasks of the paper that are more than columns and labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adept_tune import predict, search
from adept_tune.adapter import load_adapter
from adept_tune.tasks import get_task
from adept_tune.tasks.rows import load_splits

pytestmark = [pytest.mark.slow, pytest.mark.tasks]

DEMO_MODEL = Path(search.__file__).parent / "demo" / "model"
WORDS = ["screen", "battery", "camera", "phone", "film", "plot", "food", "bright", "dull", "slow", "sharp", "rich"]


def question(words: list[str], number: int) -> dict[str, Any]:
    answers = [words[2], f"{words[2]} {words[3]}"]
    return {"context": f"the {' '.join(words)}", "question": f"what is after {words[1]}?", "answers": answers}


def paragraph(words: list[str], number: int) -> dict[str, Any]:
    idx = {"paragraph": 0, "question": number // 3, "answer": number}
    row = {"paragraph": f"<b>{' '.join(words)}</b>", "question": "is it good?", "answer": words[0]}
    return row | {"idx": idx, "label": number % 2}


@pytest.mark.parametrize(
    ("task", "made", "metrics"),
    [("nq", question, ("token_f1", "exact_match")), ("multirc", paragraph, ("f1", "exact_by_group"))],
)
@pytest.mark.filterwarnings("ignore:task .* the published runs had")
def test_a_search_tells_all_metrics_and_prediction_gives_them_again(
    task: str,
    made: Any,
    metrics: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ADEPT_TUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / task).mkdir()
    rng = np.random.default_rng(0)
    for split, number in (("train", 60), ("validation", 24)):
        rows = [made([str(word) for word in rng.choice(WORDS, 5)], i) for i in range(number)]
        (tmp_path / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "experiment"
    command = ["--task", task, "--data-dir", str(tmp_path), "--model", str(DEMO_MODEL), "--space", "adept-demo"]
    command += ["--trials", "3", "--max-steps", "20", "--batch-size", "8", "--finalists", "1", "--seeds", "1"]
    assert search.main([*command, "--device", "cpu", "--experiment", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"Task      {task}: {metrics[0]}" in shown
    assert f"Test {metrics[1]}: mean " in shown
    assert "--file ROWS.jsonl" in shown
    description = json.loads((folder / "adapter" / "adapter.json").read_text())
    rows = list(load_splits(get_task(task), tmp_path).test.rows())
    evaluation = load_adapter(folder / "adapter").score(rows)
    found = {metrics[0]: evaluation.score, **evaluation.also}
    for metric in metrics:
        assert description["metrics"][f"test_{metric}"] == found[metric].value
        assert description["metrics"][f"test_{metric}_se"] == found[metric].standard_error
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predict.main(["--adapter", str(folder / "adapter"), "--file", str(file)]) == 0
    told = capsys.readouterr().err
    assert all(f"{metric} {found[metric].value!r}" in told for metric in metrics)
