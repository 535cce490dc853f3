"""A table of cells as Markdown, CSV and a page with intervals drawn; published numbers beside ours."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cells import NOT_RUN, Cell, Result
from figures import Figure, average, best, difference, figure

PUBLISHED = Path(__file__).with_name("published.yaml")
DASH = "–"
READING = (
    "Ours are test scores in per cent: the mean over the winner's seeds ± its standard error, which counts seeds and "
    "test rows. Bold is what is above every other method of ours beyond the 95 % interval of the paired difference; "
    "what is within noise is not bold, nor is anything of one seed. Differences are paired by seed, ± the half width "
    "of that interval. Published numbers are of other models, rows, lengths and searches unless said otherwise; ± is "
    "their standard deviation over seeds, and a dash says that no source we could read has the number."
)


@dataclass(frozen=True)
class Published:
    """A published line.

    Attributes:
        name: Of the method, as published.
        model: It was trained on.
        parameters: Trained numbers, as published.
        source: Where the numbers are from.
        scores: Task to mean in per cent, and standard deviation where there is one.
        method: Our name of the method; None where we do not have it.
    """

    name: str
    model: str
    parameters: str
    source: str
    scores: Mapping[str, tuple[float, float | None]]
    method: str | None = None


def read_published(path: Path = PUBLISHED) -> list[Published]:
    """Read the published lines."""
    content = yaml.safe_load(path.read_text())
    lines = []
    for line in content["lines"]:
        scores = {task: tuple(v) if isinstance(v, list) else (v, None) for task, v in line["scores"].items()}
        lines.append(Published(**line | {"source": content["sources"][line["source"]], "scores": scores}))
    return lines


@dataclass
class Table:
    """What is known of a table so far.

    Attributes:
        title: Heading.
        cells: All of them, in the order of lines and columns.
        averages: Heading to the columns averaged; those that are not in the table are left out.
        settings: What was run, by name.
        published: Lines to show beside ours.
        head: What a line is.
        demonstration: The numbers say nothing of the methods.
        results: What finished cells came to.
        reasons: Why other cells have no number.
    """

    title: str
    cells: Sequence[Cell]
    averages: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, str]
    published: Sequence[Published] = ()
    head: str = "method"
    demonstration: bool = False
    results: dict[Cell, Result] = field(default_factory=dict)
    reasons: dict[Cell, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._places = {(cell.group, cell.line, cell.column): cell for cell in self.cells}

    @property
    def groups(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(cell.group for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def lines(self, group: str) -> list[str]:
        """Of a group, in order."""
        return list(dict.fromkeys(cell.line for cell in self.cells if cell.group == group))

    def heads(self) -> list[tuple[str, tuple[str, ...]]]:
        """Headings of all figures with the columns behind each: single ones first, then averages."""
        single = [(column, (column,)) for column in self.columns]
        parts = {name: tuple(c for c in self.columns if c in tasks) for name, tasks in self.averages.items()}
        return single + [(f"{name}, mean of {len(tasks)}", tasks) for name, tasks in parts.items() if len(tasks) > 1]

    def result(self, group: str, line: str, column: str) -> Result | None:
        """Of the cell there, where it is finished."""
        cell = self._places.get((group, line, column))
        return None if cell is None else self.results.get(cell)

    def figure(self, group: str, line: str, columns: Sequence[str]) -> Figure | None:
        """Of a line, averaged over columns."""
        results = [self.result(group, line, column) for column in columns]
        return average([figure(result.scores) if result else None for result in results])

    def difference(self, group: str, one: str, other: str, columns: Sequence[str]) -> Figure | None:
        """Of two lines, averaged over columns."""
        pairs = [(self.result(group, one, column), self.result(group, other, column)) for column in columns]
        return average([difference(a.scores, b.scores) if a and b else None for a, b in pairs])

    def best(self, group: str, columns: Sequence[str]) -> str | None:
        """The line that stands out of a group, of those that have a number in every column."""
        known: dict[str, list[Any]] = {}
        for line in self.lines(group):
            results = [self.result(group, line, column) for column in columns]
            if all(results):
                known[line] = [result.scores for result in results if result]
        return best(known)

    def published_beside(self, group: str) -> list[Published]:
        """Published lines of a group: where groups are models, those of that model."""
        if len(self.groups) == 1:
            return list(self.published)
        return [line for line in self.published if Path(group).name == line.model]

    def missing(self) -> dict[Cell, str]:
        """Cells without a number, and why."""
        return {cell: self.reasons.get(cell, NOT_RUN) for cell in self.cells if cell not in self.results}


def published_score(line: Published, columns: Sequence[str]) -> tuple[float, float | None] | None:
    """A published number, or the mean of several; None where one is not known."""
    scores = [line.scores.get(column) for column in columns]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores) or not known:
        return None
    return known[0] if len(known) == 1 else (sum(mean for mean, _ in known) / len(known), None)


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The whole table for people."""
    parts = [f"# {table.title}", "; ".join(f"{name} {value}" for name, value in table.settings.items()) + "."]
    if table.demonstration:
        parts.append("**Tiny models and made rows: these numbers show the machinery and say nothing of the methods.**")
    for group in table.groups:
        parts += [f"## {group}"] if group else []
        parts.append(_pipes(*score_rows(table, group)))
        heads, rows = difference_rows(table, group)
        if rows:
            parts += [f"### Paired differences{f', {group}' if group else ''}", _pipes(heads, rows)]
    if table.missing():
        parts.append("## Without a number")
        lines = {f"{cell.group} {cell.line} on {cell.column}".strip(): why for cell, why in table.missing().items()}
        parts.append("\n".join(f"- {name}: {why}" for name, why in lines.items()))
    sources = dict.fromkeys(line.source for line in table.published)
    parts += ["## How to read it", READING]
    parts += ["Published numbers: " + "; ".join(sources) + "."] if sources else []
    return "\n\n".join(parts) + "\n"


def score_rows(table: Table, group: str) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of scores, each of ours followed by the published line of the same method."""
    heads = table.heads()
    winners = {name: table.best(group, columns) for name, columns in heads}
    beside = table.published_beside(group)
    rows = []
    for line in table.lines(group):
        rows.append([line, _parameters(table, group, line)])
        for name, columns in heads:
            found = table.figure(group, line, columns)
            text = DASH if found is None else f"{100 * found.mean:.1f} ± {100 * found.se:.1f}"
            rows[-1].append(f"**{text}**" if winners[name] == line else text)
        rows += [_published_row(other, heads) for other in beside if other.method == line]
    ours = set(table.lines(group))
    rows += [_published_row(other, heads) for other in beside if other.method not in ours]
    return [table.head, "parameters", *(name for name, _ in heads)], rows


def difference_rows(table: Table, group: str) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the first line's differences from the others."""
    heads = table.heads()
    first, *others = table.lines(group)
    rows = []
    for line in others:
        rows.append([f"{first} − {line}"])
        for _, columns in heads:
            found = table.difference(group, first, line, columns)
            rows[-1].append(DASH if found is None else f"{100 * found.mean:+.1f} ± {_per_cent(found.half)}")
    return [f"{first} against", *(name for name, _ in heads)], rows


def _parameters(table: Table, group: str, line: str) -> str:
    counts = [r.num_parameters for r in (table.result(group, line, column) for column in table.columns) if r]
    if not counts:
        return DASH
    return f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"


def _published_row(line: Published, heads: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    cells = [f"{line.name}, published ({line.model})", line.parameters]
    for _, columns in heads:
        score = published_score(line, columns)
        spread = f" ± {score[1]:.1f}" if score and score[1] is not None else ""
        cells.append(f"{score[0]:.1f}{spread}" if score else DASH)
    return cells


def _per_cent(half: float | None) -> str:
    return "?" if half is None else f"{100 * half:.1f}"


def _pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


# -- CSV --------------------------------------------------------------------------------------------------------------

CELL_FIELDS = (
    *("kind", "group", "line", "column", "metric", "mean", "se", "low", "high", "num_seeds", "seed_scores", "bold"),
    *("validation", "num_parameters", "configuration", "trials", "max_steps", "seconds", "source", "reason"),
)


def cells_csv(table: Table) -> str:
    """A line a cell, ours and published; scores as fractions."""
    leading = {(group, column): table.best(group, (column,)) for group in table.groups for column in table.columns}
    rows = [_cell_row(table, cell, leading[cell.group, cell.column] == cell.line) for cell in table.cells]
    for group in table.groups:
        for line in table.published_beside(group):
            for column in table.columns:
                score = published_score(line, (column,))
                row = {"kind": "published", "group": group, "line": line.name, "column": column, "source": line.source}
                if score:
                    row |= {"mean": f"{score[0] / 100:.4f}"}
                rows.append(row | {"num_parameters": line.parameters})
    return _csv(CELL_FIELDS, rows)


def _cell_row(table: Table, cell: Cell, bold: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": "ours", "group": cell.group, "line": cell.line, "column": cell.column}
    result = table.results.get(cell)
    if result is None:
        return row | {"reason": table.reasons.get(cell, NOT_RUN)}
    found = figure(result.scores)
    if found.half is not None:
        row |= {"low": found.mean - found.half, "high": found.mean + found.half}
    return row | {
        "metric": result.metric,
        "mean": found.mean,
        "se": found.se,
        "num_seeds": found.num_seeds,
        "seed_scores": " ".join(f"{seed}:{score:.6g}" for seed, (score, _) in sorted(result.scores.items())),
        "bold": int(bold),
        "validation": result.validation,
        "num_parameters": result.num_parameters,
        "configuration": result.configuration,
        "trials": result.trials,
        "max_steps": result.max_steps,
        "seconds": round(result.seconds, 1),
    }


def differences_csv(table: Table) -> str:
    """A line a pair of lines and column; differences of fractions."""
    rows = []
    for group in table.groups:
        lines = table.lines(group)
        for i, one in enumerate(lines):
            for other in lines[i + 1 :]:
                for name, columns in table.heads():
                    found = table.difference(group, one, other, columns)
                    row: dict[str, Any] = {"group": group, "one": one, "other": other, "column": name}
                    if found is not None:
                        row |= {"mean": found.mean, "se": found.se, "half": found.half, "num_seeds": found.num_seeds}
                    rows.append(row)
    return _csv(("group", "one", "other", "column", "mean", "se", "half", "num_seeds"), rows)


def _csv(fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


# -- the page ---------------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } h3 { font-size: 1rem; margin: 1rem 0 .2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { background: #f4f4f4 }
.note { color: #8a5a00; font-weight: 600 }
.drawings { display: flex; flex-wrap: wrap; gap: 1rem } svg { background: #fcfcfc } svg text { font-size: 11px }
"""
_WIDTH, _LEFT, _RIGHT, _LINE = 420, 150, 15, 18


def page(table: Table) -> str:
    """One self-contained page: the tables, and every column's intervals drawn."""
    settings = "; ".join(f"{name} {value}" for name, value in table.settings.items())
    note = '<p class="note">Tiny models and made rows: this says nothing of the methods.</p>'
    settings = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(settings))
    body = [f"<h1>{html.escape(table.title)}</h1><p>{settings}</p>", note if table.demonstration else ""]
    for group in table.groups:
        body.append(f"<h2>{html.escape(group)}</h2>" if group else "")
        body.append(_html_table(*score_rows(table, group)))
        drawings = [drawing(table, group, name, columns) for name, columns in table.heads()]
        body.append("<h2>Intervals</h2><p>Dots and 95 % intervals are ours, diamonds published.</p>")
        body.append(f'<div class="drawings">{"".join(drawings)}</div>')
        heads, rows = difference_rows(table, group)
        if rows:
            body.append("<h2>Paired differences</h2>" + _html_table(heads, rows))
    if table.missing():
        items = (f"<li>{html.escape(f'{c.group} {c.line} on {c.column}: {why}')}" for c, why in table.missing().items())
        body.append(f"<h2>Without a number</h2><ul>{''.join(items)}</ul>")
    body.append(f"<p>{html.escape(READING)}</p>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(table.title)}</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def drawing(table: Table, group: str, name: str, columns: Sequence[str]) -> str:
    """A column's intervals as a picture; nothing where there is nothing to draw."""
    marks: list[tuple[str, float, float | None, bool]] = []  # name, mean, half width, published; per cent
    for line in table.lines(group):
        found = table.figure(group, line, columns)
        if found is not None:
            marks.append((line, 100 * found.mean, None if found.half is None else 100 * found.half, False))
    for other in table.published_beside(group):
        score = published_score(other, columns)
        if score is not None:
            marks.append((other.name, score[0], None, True))
    if not marks:
        return ""
    low = min(mean - (half or 0) for _, mean, half, _ in marks)
    high = max(mean + (half or 0) for _, mean, half, _ in marks)
    low, high = (low - 1, high + 1) if high == low else (low, high)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for row, (label, mean, half, published) in enumerate(marks):
        y = _LINE * (row + 1)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{html.escape(label)}</text>')
        if half is not None:
            parts.append(f'<path d="M{x(mean - half):.1f} {y}H{x(mean + half):.1f}" stroke="#26c" stroke-width="2"/>')
        shape = f'd="M{x(mean):.1f} {y - 5}l5 5l-5 5l-5-5z" fill="none" stroke="#a50"'
        dot = f'<circle cx="{x(mean):.1f}" cy="{y}" r="4" fill="#26c"'
        title = f"<title>{html.escape(label)}: {mean:.1f}{'' if half is None else f' ± {half:.1f}'}</title>"
        parts.append(f"<path {shape}>{title}</path>" if published else f"{dot}>{title}</circle>")
    height = _LINE * (len(marks) + 2)
    for value in (low, high):
        parts.append(f'<text x="{x(value):.1f}" y="{height - 6}" text-anchor="middle">{value:.1f}</text>')
    return (
        f'<figure><h3>{html.escape(name)}</h3><svg role="img" aria-label="{html.escape(name)}: intervals" '
        f'width="{_WIDTH}" height="{height}">{"".join(parts)}</svg></figure>'
    )


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        bold = text.startswith("**")
        return f"<td>{'<b>' if bold else ''}{html.escape(text.strip('*'))}{'</b>' if bold else ''}</td>"

    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(cell(text) for text in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
