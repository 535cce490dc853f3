"""One self-contained page about a search, written from its journal."""

import base64
import html
from pathlib import Path
from typing import Any

from adept_tune.console import shown
from adept_tune.tasks import get_task
from adept_tune.tuning.plots import draw_all
from adept_tune.tuning.record import Record, TrialStory
from adept_tune.tuning.retrain import Spread

REPORT, PLOTS = "report.html", "plots"

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
th { background: #f4f4f4 } img { max-width: 100% } .note { color: #8a5a00; font-weight: 600 }
.n { text-align: right; font-variant-numeric: tabular-nums }
"""


def write_report(folder: Path) -> list[Path]:
    """Write `report.html` and its plots into an experiment folder.

    Returns:
        The files written, the page first.

    Raises:
        SpecError: There is no experiment in the folder.
        StateError: Its journal is damaged.
    """
    record = Record.read(folder)
    drawn = draw_all(record, folder / PLOTS)
    page = folder / REPORT
    part = page.with_suffix(".part")
    part.write_text(_page(record, folder.name, drawn))
    part.replace(page)
    return [page, *drawn.values()]


def _page(record: Record, name: str, drawn: dict[str, Path]) -> str:
    task = get_task(record.spec.task)
    note = '<p class="note">A demonstration: it says nothing about methods.</p>' if task.demonstration else ""
    pictures = "".join(
        f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for title, path in drawn.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(name)}</h1>{note}{_summary(record)}{_winner(record)}{pictures}"
        f"<h2>Trials</h2>{_trials(record)}</html>\n"
    )


def _summary(record: Record) -> str:
    spec, task = record.spec, get_task(record.spec.task)
    answers = "open answers" if task.is_open else f"labels {spec.labels}"
    protocol = ", with the faults of the published code" if spec.protocol == "paper" else ""
    rows = {
        "Task": f"{spec.task_name}, {task.metric}, {answers}{protocol}",
        "Model": f"{spec.backbone['name']} ({spec.backbone['revision'][:12]}), {spec.precision} on {spec.device}",
        "Method": spec.method,
        "Search": f"{spec.trials} trials of up to {spec.max_steps} steps of {spec.batch_size} rows, "
        f"{spec.sampler} and {spec.scheduler}, seed {spec.seed}",
        "Trials": ", ".join(f"{count} {state}" for state, count in _counts(record).items()),
        "Retraining": f"{record.num_reruns} runs of {len({number for number, _ in record.reruns})} configurations",
    }
    return _table([], [[key, value] for key, value in rows.items()])


def _winner(record: Record) -> str:
    metric = get_task(record.spec.task).metric
    if record.winner is None:
        return "<h2>Winner</h2><p>There is none yet.</p>"
    test, number = record.winner["test"], record.winner["trial"]
    first = (record.winner.get("baseline") or {}).get("trial")
    rows = [
        [
            f"trial {n}" + (" (the space's first point)" if n == first else ""),
            f"{s.mean:.4f} ± {s.se:.4f}",
            shown(record.trials[n].params),
        ]
        for n, s in sorted(record.finalists().items(), key=lambda item: item[1].mean, reverse=True)
    ]
    return (
        f"<h2>Winner: trial {number}</h2><p>{html.escape(shown(record.winner['params']))}</p>"
        f"<p>Test {metric}: mean {test['mean']:.4f}, standard deviation {test['sd']:.4f}, standard error "
        f"{test['se']:.4f} (seeds and rows). Exported: seed {record.winner['seed']}, the best on validation.</p>"
        + "".join(
            f"<p>Test {html.escape(metric)}: mean {spread['mean']:.4f}, standard error {spread['se']:.4f}.</p>"
            for metric, spread in record.winner.get("test_also", {}).items()
        )
        + _baseline(record.winner.get("baseline"))
        + _table(["finalist", f"validation {metric}, mean ± s.e. (seeds and rows)", "configuration"], rows)
    )


def _baseline(baseline: dict[str, Any] | None) -> str:
    """By how much the winner is above the space's first point."""
    if baseline is None or "gain" not in baseline:
        return ""
    gain = Spread(*(baseline["gain"][name] for name in ("mean", "sd", "se")))
    return f"<p>Against the space's first point (trial {baseline['trial']}): {gain.difference()}.</p>"


def _trials(record: Record) -> str:
    heads = ["trial", "end", "step", "score", "parameters", "configuration", "why it ended"]
    return _table(heads, [_row(story) for story in record.trials.values()])


def _row(story: TrialStory) -> list[str]:
    score = "" if story.score is None else f"{story.score:.4f}"
    parameters = f"{story.num_parameters:,}"
    return [str(story.number), story.state, str(story.step), score, parameters, shown(story.params), story.reason]


def _counts(record: Record) -> dict[str, int]:
    states = [story.state for story in record.trials.values()]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if heads else ''}{body}</table>"
