"""What a table shows: bold, dashes, published numbers, and the same in CSV and HTML."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

# Averages as quoted with the published tables: GLUE, SuperGLUE, MRQA, others. They are not in our file.
QUOTED = {
    "Full fine-tuning": (84.9, 73.9, 74.7, 87.1),
    "Adapter": (84.5, 75.7, 74.7, 86.2),
    "AdapterDrop": (84.4, 75.3, None, None),
    "BitFit": (83.3, 72.5, 72.0, 84.7),
    "LoRA": (85.3, 76.5, 66.0, 86.0),
    "LST": (84.1, None, None, None),
    "Prompt tuning": (84.9, 73.3, 70.8, 73.8),
    "SPoT": (82.3, 62.9, 69.1, 82.0),
    "ATTEMPT": (83.4, 70.5, 71.4, 84.9),
    "MPT": (85.6, 74.1, 72.2, 85.5),
    "DePT": (85.9, 76.5, 73.0, 86.3),
}
ROUNDED = 0.11
# What the numbers of a row average to is not what is quoted with them; which of them is wrong we do not know.
INCONSISTENT = {("ATTEMPT", 2): 0.4, ("DePT", 2): 0.3}


def result(*values: float, metric: str = "accuracy") -> Any:
    from cells import Result

    scores = {seed: (value, 0.001) for seed, value in enumerate(values, 1)}
    return Result(metric, scores, 0.9, {"prompt_lr": 0.3}, 76_051, 4, 100, 12.0)


def made(**changes: Any) -> Any:
    from cells import Cell
    from table import Table, read_published

    cells = {
        (line, column): Cell(line, column, ("--task", column))
        for column in ("rte", "cola")
        for line in ("adept", "dept")
    }
    table = Table("A table", list(cells.values()), {"both": ("rte", "cola")}, {"model": "m"}, read_published())
    table.results[cells["adept", "rte"]] = result(0.90, 0.91, 0.92)
    table.results[cells["dept", "rte"]] = result(0.80, 0.81, 0.82)
    table.results[cells["adept", "cola"]] = result(0.50, 0.60, 0.70)
    table.reasons[cells["dept", "cola"]] = "the disk | is <full>"
    for name, value in changes.items():
        setattr(table, name, value)
    return table


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell of each line of the first Markdown table to the others."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line[0], line[1:])
    return found


def test_bold_is_what_stands_out_and_a_missing_cell_is_a_dash_with_its_reason() -> None:
    from table import markdown

    text = markdown(made())
    rows = rows_of(text)
    assert rows["adept"] == ["76,051", "**91.0 ± 0.6**", "60.0 ± 5.8", "75.5 ± 2.9"]
    assert rows["dept"] == ["76,051", "81.0 ± 0.6", "–", "–"]
    assert "- dept on cola: the disk | is <full>" in text


def test_within_noise_nothing_is_bold() -> None:
    from table import markdown

    table = made()
    cell = next(cell for cell in table.cells if (cell.line, cell.column) == ("dept", "rte"))
    table.results[cell] = result(0.93, 0.88, 0.90)
    assert "**" not in markdown(table)


def test_published_numbers_stand_below_the_same_method_and_unknown_ones_are_dashes() -> None:
    from table import markdown

    rows = rows_of(markdown(made()))
    names = list(rows)
    assert names[names.index("adept") + 1] == "ADePT, published (t5-base)"
    assert rows["ADePT, published (t5-base)"][1:] == ["–", "–", "–"]
    assert rows["DePT, published (t5-base)"] == ["76.8K", "79.1", "63.8", "71.4"]


def test_the_paired_difference_has_its_half_width() -> None:
    from table import markdown

    rows = rows_of(markdown(made()))
    assert rows["adept − dept"][0] == "+10.0 ± 0.3"  # 1.96 * sqrt(2) * 0.1 of rows; the seeds differ by the same
    assert rows["adept − dept"][1:] == ["–", "–"]


def test_csv_has_every_cell_ours_and_published() -> None:
    from table import cells_csv, differences_csv

    rows = list(csv.DictReader(io.StringIO(cells_csv(made()))))
    ours = {(row["line"], row["column"]): row for row in rows if row["kind"] == "ours"}
    assert ours["adept", "rte"]["mean"] == "0.91"
    assert ours["adept", "rte"]["seed_scores"] == "1:0.9 2:0.91 3:0.92"
    assert ours["adept", "rte"]["bold"] == "1"
    assert ours["dept", "cola"]["mean"] == ""
    assert ours["dept", "cola"]["reason"] == "the disk | is <full>"
    published = {(row["line"], row["column"]): row for row in rows if row["kind"] == "published"}
    assert published["DePT", "rte"]["mean"] == "0.7910"
    assert published["ADePT", "rte"]["mean"] == ""
    differences = list(csv.DictReader(io.StringIO(differences_csv(made()))))
    assert [(row["column"], row["mean"]) for row in differences] == [
        ("rte", "0.1"),
        ("cola", ""),
        ("both, mean of 2", ""),
    ]


def test_the_page_draws_intervals_and_escapes_what_it_is_given() -> None:
    from table import page

    text = page(made())
    assert "the disk | is &lt;full&gt;" in text
    assert "<title>adept: 91.0 ± " in text
    assert "<title>DePT: 79.1</title>" in text
    assert "<td><b>91.0 ± 0.6</b></td>" in text
    lines = [(float(a), float(b)) for a, b in re.findall(r'd="M([\d.]+) \d+H([\d.]+)" stroke="#26c"', text)]
    assert lines
    assert all(left < right for left, right in lines)
    assert text.count("<svg") == 3


def test_groups_are_compared_within_themselves_and_have_their_models_published_numbers() -> None:
    from cells import Cell
    from table import Table, markdown, read_published

    cells = [Cell(line, "rte", (), group) for group in ("t5-small", "t5-base") for line in ("adept", "dept")]
    table = Table("Sizes", cells, {}, {}, read_published())
    for cell, value in zip(cells, (0.6, 0.5, 0.8, 0.9), strict=True):
        table.results[cell] = result(value, value + 0.001, value + 0.002)
    small, base = markdown(table).split("## t5-base")
    assert "| adept | 76,051 | **60.1" in small
    assert "published" not in small.replace("Published", "").split("### ")[0].split("## t5-small")[1]
    assert "| dept | 76,051 | **90.1" in base
    assert "DePT, published (t5-base)" in base


@pytest.mark.parametrize("name", QUOTED)
def test_published_numbers_have_the_published_averages(name: str) -> None:
    import glue_superglue
    import mrqa
    import others
    from table import published_score, read_published

    (line,) = [line for line in read_published() if line.name == name]
    groups = (glue_superglue.GLUE, glue_superglue.SUPER_GLUE, mrqa.TASKS, others.TASKS)
    for i, (tasks, quoted) in enumerate(zip(groups, QUOTED[name], strict=True)):
        found = published_score(line, tasks)
        assert (found is None) == (quoted is None)
        if found is not None:
            assert found[0] == pytest.approx(quoted, abs=INCONSISTENT.get((name, i), ROUNDED))


def test_places_of_cells_differ(tmp_path: Path) -> None:
    from cells import Cell

    places = {Cell(a, b, (), c).place for a in ("x", "y z") for b in ("p", "q") for c in ("", "m/n")}
    assert len(places) == 8
    assert all(".." not in place.parts for place in places)
