"""The journal: what was appended is read, whatever a kill did to the last line."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_tune.errors import StateError
from adept_tune.tuning.journal import Journal
from tests.support.search import properties

EVENTS: list[dict[str, Any]] = [
    {
        **{"event": "proposed", "trial": 0, "params": {}, "num_parameters": 7},
        "point": {"prompt_lr": 0.1 + 0.2, "labels": "digits", "wide_start": True},
    },
    {"event": "started", "trial": 0},
    {"event": "reported", "trial": 0, "step": 3, "train_loss": 1e-300, "loss": 5e-324},
    {"event": "decided", "trial": 0, "step": 3, "rung": None, "action": "continue", "reason": "ü – \u2028 \n\r{}\x00"},
    {"event": "reported", "trial": 0, "step": 4, "train_loss": math.nan, "loss": math.inf, "diverged": True},
    {"event": "ended", "trial": 0, "state": "FAILED", "step": 4, "reason": "", "error": "x\n" * 9000},
    {"event": "finished", "state": "FINISHED"},
]


def written(folder: Path) -> Journal:
    """A journal with a line for each of the events, at 1 s, 2 s and so on."""
    times = iter(range(1, 99))
    journal = Journal(folder / "journal.jsonl", clock=lambda: next(times))
    for event in EVENTS:
        journal.append(event)
    return journal


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Equal, NaN included; the order of fields does not count."""
    return [json.dumps(event, sort_keys=True) for event in found] == [
        json.dumps(event, sort_keys=True) for event in expected
    ]


def test_what_was_appended_is_read_in_order_with_its_time(tmp_path):
    found = list(written(tmp_path).read())
    assert same(found, [{"time": i} | event for i, event in enumerate(EVENTS, start=1)])


def test_append_gives_the_event_as_written(tmp_path):
    journal = Journal(tmp_path / "j", clock=lambda: 12.34567)
    assert journal.append({"event": "started", "trial": 3}) == {"event": "started", "time": 12.346, "trial": 3}


def test_an_event_is_one_line_and_begins_with_its_name_and_time(tmp_path):
    lines = written(tmp_path).path.read_text().split("\n")
    assert len(lines) == len(EVENTS) + 1
    assert lines[-1] == ""
    assert lines[1] == '{"event": "started", "time": 2, "trial": 0}'


def test_an_event_is_in_the_file_when_append_returns(tmp_path):
    journal = Journal(tmp_path / "j")
    for number in range(3):
        journal.append({"event": "started", "trial": number})
        assert len((tmp_path / "j").read_bytes().splitlines()) == number + 1


def test_an_event_is_through_to_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    journal = Journal(tmp_path / "j")
    for number in range(3):
        journal.append({"event": "started", "trial": number})
        assert synced[number:] == [(tmp_path / "j").stat().st_size]


def test_nothing_is_read_where_there_is_no_file(tmp_path):
    assert list(Journal(tmp_path / "j").read()) == []
    assert not (tmp_path / "j").exists()


def test_an_empty_file_has_no_events(tmp_path):
    (tmp_path / "j").touch()
    assert list(Journal(tmp_path / "j").read()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_comes_back(tmp_path, value):
    journal = Journal(tmp_path / "j")
    journal.append({"event": "reported", "trial": 0, "step": 1, "train_loss": value})
    (event,) = journal.read()
    assert repr(event["train_loss"]) == repr(value)


@properties(200)
@given(st.floats())
def test_a_number_comes_back_to_the_last_bit(tmp_path, value):
    journal = Journal(tmp_path / "j")
    journal.append({"event": "reported", "trial": 0, "step": 1, "train_loss": value})
    assert repr(list(journal.read())[-1]["train_loss"]) == repr(value)


def test_every_prefix_of_a_journal_is_read_up_to_its_last_whole_line(tmp_path):
    whole = written(tmp_path)
    blob, events = whole.path.read_bytes(), list(whole.read())
    ends = [i + 1 for i, byte in enumerate(blob) if byte == ord("\n")]
    torn = Journal(tmp_path / "torn")
    cuts = {*range(0, 900), *range(len(blob) - 300, len(blob) + 1), *(e + d for e in ends for d in (-1, 0, 1)), 5000}
    for cut in sorted(cut for cut in cuts if 0 <= cut <= len(blob)):
        torn.path.write_bytes(blob[:cut])
        assert same(list(torn.read()), events[: sum(end <= cut for end in ends)]), cut
        assert torn.path.read_bytes() == blob[:cut]  # reading mends nothing


def test_a_torn_last_line_is_overwritten(tmp_path):
    whole = written(tmp_path)
    blob, events = whole.path.read_bytes(), list(whole.read())
    ends = [0, *(i + 1 for i, byte in enumerate(blob) if byte == ord("\n"))]
    torn = Journal(tmp_path / "torn", clock=lambda: 50.0)
    new = {"event": "started", "time": 50.0, "trial": 9}
    for index, end in enumerate(ends[:-1]):
        for cut in (end, end + 1, (end + ends[index + 1]) // 2, ends[index + 1] - 1):
            torn.path.write_bytes(blob[:cut])
            torn.append({"event": "started", "trial": 9})
            assert same(list(torn.read()), [*events[:index], new]), cut


def test_a_torn_line_longer_than_a_block_is_dropped(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append({"event": "started", "trial": 0})
    with journal.path.open("ab") as file:
        file.write(b'{"event": "ended", "error": "' + b"x" * 50_000)
    assert len(list(journal.read())) == 1
    journal.append({"event": "started", "trial": 1})
    assert [event["trial"] for event in journal.read()] == [0, 1]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x00\x00\x00\x00",
        b'{"event": "star',
        b"\xff\xfe",
        b"[1, 2]",
        b"3",
        b"null",
        b"{}",
        b'{"event": 3}',
        b'{"trial": 3}',
    ],
)
@pytest.mark.parametrize("place", [0, 2, len(EVENTS) - 1])
def test_a_damaged_line_is_told_with_file_and_number(tmp_path, damage, place):
    journal = written(tmp_path)
    lines = journal.path.read_bytes().splitlines()
    lines[place] = damage
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    read = journal.read()
    for _ in range(place):
        next(read)
    with pytest.raises(StateError) as caught:
        next(read)
    assert str(caught.value).startswith(f"{journal.path}, line {place + 1}: not an event (")


def test_two_halves_glued_by_a_lost_newline_are_told(tmp_path):
    journal = written(tmp_path)
    journal.path.write_bytes(journal.path.read_bytes().replace(b"\n", b"", 1))
    with pytest.raises(StateError, match="line 1: not an event"):
        list(journal.read())


def test_a_journal_survives_a_kill_at_any_moment(tmp_path):
    path = tmp_path / "j"
    for _ in range(3):
        before = len(list(Journal(path).read()))
        code = (
            "import sys; from pathlib import Path; from adept_tune.tuning.journal import Journal\n"
            "journal = Journal(Path(sys.argv[1]))\n"
            "for number in range(int(sys.argv[2]), 10**9):\n"
            "    journal.append({'event': 'started', 'trial': number, 'padding': 'x' * 3000})\n"
            "    print(number, flush=True)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(before)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines() if line.strip()]
        process.stdout.close()
        process.wait()
        numbers = [event["trial"] for event in Journal(path).read()]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > told[-1]  # nothing that was acted on is lost
