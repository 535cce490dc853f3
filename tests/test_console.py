"""The console: lines where there is no terminal, one live view where there is."""

import io

import pytest

from adept_tune.console import Console, Outlook
from adept_tune.tuning.record import Record
from adept_tune.tuning.spec import SearchSpec
from tests.support.search import spec_fields

OUTLOOK = Outlook("accuracy", True, 2, [4], 60.0, lambda: "http://127.0.0.1:5000", demonstration=True)


@pytest.fixture
def record() -> Record:
    return Record(SearchSpec(**spec_fields(max_steps=8)))


EVENTS = [
    {"event": "proposed", "trial": 0, "params": {"prompt_length": 4, "prompt_lr": 0.3}, "num_parameters": 1234},
    {"event": "started", "trial": 0},
    {"event": "proposed", "trial": 1, "params": {"prompt_length": 8, "prompt_lr": 0.01}, "num_parameters": 99},
    {"event": "started", "trial": 1},
    {"event": "reported", "trial": 0, "step": 2, "train_loss": 0.5},
    {
        "event": "reported",
        "trial": 0,
        "step": 4,
        "train_loss": 0.4,
        "score": 0.75,
        "standard_error": 0.01,
        "loss": 0.6,
    },
    {"event": "ended", "trial": 1, "state": "PRUNED", "step": 4, "reason": "below the cut-off 0.7"},
]


def test_lines_name_configuration_score_and_why_a_trial_ended(record):
    stream = io.StringIO()
    console = Console(stream, clock=lambda: 0.0)
    console.begin(record, OUTLOOK)
    for event in EVENTS:
        console.event(event)
    console.end()
    text = stream.getvalue()
    assert "trial 0: prompt_length 4, prompt_lr 0.3 (1,234 parameters)" in text
    assert "trial 0: step 4, accuracy 0.7500, loss 0.6000" in text
    assert "trial 1: PRUNED at step 4 (below the cut-off 0.7)" in text
    assert "\x1b" not in text  # no terminal, no control sequences


def test_lines_are_not_silent_for_long_while_trials_report(record):
    stream, now = io.StringIO(), [0.0]
    console = Console(stream, clock=lambda: now[0])
    console.begin(record, OUTLOOK)
    for event in EVENTS[:2]:
        console.event(event)
    for step in range(1, 4):
        now[0] += 10
        console.event({"event": "reported", "trial": 0, "step": step, "train_loss": 0.5})
    assert stream.getvalue().count("training: trial 0 step") == 1


def test_live_view_shows_what_matters(record):
    from rich.console import Console as RichConsole

    console = Console(io.StringIO(), clock=lambda: 5.0, live=True)
    console.begin(record, OUTLOOK)
    for event in EVENTS:
        console.event(event)
    page = io.StringIO()
    RichConsole(file=page, width=120).print(console._view())
    console.end()
    text = page.getvalue()
    for part in (
        "a demonstration",
        "trial 0, accuracy 0.7500 at step 4: prompt_length 4, prompt_lr 0.3",
        "2 of 3 proposed; 1 PRUNED",
        "1 at 4",
        "1 of 2 in use",
        "about   1:00 left",
        "http://127.0.0.1:5000",
        "4/8",
    ):
        assert part in text, part
