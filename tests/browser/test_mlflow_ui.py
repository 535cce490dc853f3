"""What a person sees of a finished search in MLflow's pages, in a real browser and without any set-up."""

import re
from typing import Any

import pytest

from tests.support.finished import Finished

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1800),  # the first test waits for the search
    pytest.mark.usefixtures("chromium"),  # asked for before anything that takes time
]

SETTINGS = ("prompt_length", "ffn_width", "prompt_lr", "ffn_lr")
CELLS = """cells => cells.map(cell => [
    cell.closest("[row-id]").getAttribute("row-id"),
    cell.getAttribute("col-id"),
    (cell.querySelector("a") ?? cell).innerText.trim(),
])"""


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def parent_name(finished: Finished) -> str:
    return f"demonstration: {finished.folder.name}"


def row(page: Any, name: str) -> Any:
    """The part of a run's row that has its name."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def open_trials(page: Any, address: str, finished: Finished) -> None:
    """Open the table, unfold the search, and wait for its trials."""
    from playwright.sync_api import expect

    page.goto(address)
    row(page, parent_name(finished)).get_by_role("button").first.click()
    for event in finished.of("proposed"):
        expect(page.get_by_role("link", name=trial_name(event["trial"]), exact=True)).to_be_visible()


def shown_table(page: Any) -> dict[str, dict[str, str]]:
    """Run name to column heading to what the cell says."""
    heads = {
        head.get_attribute("col-id"): head.inner_text().strip()
        for head in page.locator("[role=columnheader][col-id]").all()
    }
    rows: dict[str, dict[str, str]] = {}
    for run, column, text in page.get_by_role("gridcell").evaluate_all(CELLS):
        rows.setdefault(run, {})[heads.get(column, column)] = text
    return {cells["Run Name"]: cells for cells in rows.values()}


def last_scores(finished: Finished) -> dict[int, dict[str, Any]]:
    """Trial to its last report with a score."""
    return {event["trial"]: event for event in finished.of("reported") if "score" in event}


def test_table_shows_every_trial_with_its_end_its_settings_and_its_result(
    page: Any, trials_page: str, finished: Finished
) -> None:
    open_trials(page, trials_page, finished)
    table = shown_table(page)
    trials = {event["trial"]: event for event in finished.of("proposed")}
    ends = {event["trial"]: event for event in finished.of("ended")}
    scores = last_scores(finished)
    assert len(trials) > 1
    assert ends.keys() == trials.keys()
    for number, trial in trials.items():
        cells = table[trial_name(number)]
        assert cells["end_state"] == ends[number]["state"]
        assert float(cells["step"]) == ends[number]["step"]
        assert {name: cells[name] for name in SETTINGS} == {name: str(trial["params"][name]) for name in SETTINGS}
        assert cells["num_parameters"] == str(trial["num_parameters"])
        if number in scores:
            assert float(cells["score"]) == pytest.approx(scores[number]["score"], abs=1e-9)
            assert float(cells["validation_loss"]) == pytest.approx(scores[number]["loss"], abs=1e-9)
    assert scores


def test_table_names_the_winner_beside_the_search(page: Any, trials_page: str, finished: Finished) -> None:
    open_trials(page, trials_page, finished)
    (winner,) = finished.of("winner")
    metric = finished.adapter["task"]["metric"]
    cells = shown_table(page)[parent_name(finished)]
    assert cells["winner_trial"] == str(winner["trial"])
    assert float(cells["score"]) == pytest.approx(winner["validation"]["mean"], abs=1e-9)
    said = f"Winner: trial {winner['trial']}, test {metric} {winner['test']['mean']:.3f}"
    assert cells["Description"].startswith(said)


def test_search_page_tells_the_winner_in_full(page: Any, trials_page: str, finished: Finished) -> None:
    from playwright.sync_api import expect

    open_trials(page, trials_page, finished)
    page.get_by_role("link", name=parent_name(finished), exact=True).click()
    (winner,) = finished.of("winner")
    for name, value in winner["params"].items():
        expect(page.get_by_text(re.compile(f"Winner: trial {winner['trial']}.*{name} {value}"))).to_be_visible()
    cells = page.get_by_role("row").filter(has_text="winner_test_mean")
    mean = finished.adapter["metrics"][f"seeds_test_{finished.adapter['task']['metric']}_mean"]
    assert float(cells.inner_text().split()[-1]) == pytest.approx(mean, abs=1e-9)


def test_winner_page_shows_its_settings_and_curves(page: Any, trials_page: str, finished: Finished) -> None:
    from playwright.sync_api import expect

    open_trials(page, trials_page, finished)
    (winner,) = finished.of("winner")
    page.get_by_role("link", name=trial_name(winner["trial"]), exact=True).click()
    for name, value in winner["params"].items():
        expect(page.get_by_role("row").filter(has_text=re.compile(rf"^{name}\s*{value}$"))).to_be_visible()
    cells = page.get_by_role("row").filter(has_text=re.compile(r"^score"))
    score = last_scores(finished)[winner["trial"]]["score"]
    assert float(cells.inner_text().split()[-1]) == pytest.approx(score, abs=1e-9)
    page.get_by_role("tab", name="Model metrics").click()
    reports = [event for event in finished.of("reported") if event["trial"] == winner["trial"]]
    scored = [event for event in reports if "score" in event]
    points = {"step": len(reports), "train_loss": len(reports), "score": len(scored), "validation_loss": len(scored)}
    points[f"validation_{finished.adapter['task']['metric']}"] = len(scored)
    for name in points:
        expect(page.get_by_text(f"{trial_name(winner['trial'])} ({name})")).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer .point")).to_have_count(sum(points.values()))


def test_search_page_shows_plots_and_report(page: Any, trials_page: str, finished: Finished) -> None:
    from playwright.sync_api import expect

    open_trials(page, trials_page, finished)
    page.get_by_role("link", name=parent_name(finished), exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report", exact=True).click()
    for plot in sorted((finished.folder / "plots").iterdir()):
        page.get_by_text(plot.name, exact=True).click()
        image = page.locator(f"img[alt='report/{plot.name}']")
        expect(image).to_be_visible()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.get_by_text("report.html", exact=True).click()
    (winner,) = finished.of("winner")
    heading = page.frame_locator("iframe").get_by_role("heading", name=f"Winner: trial {winner['trial']}")
    expect(heading).to_be_visible()
