"""What an experiment folder is read back from, damaged: one error that names the file, never a traceback of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_tune import report
from adept_tune.errors import SpecError, StateError
from adept_tune.tuning.experiment import progress_of
from adept_tune.tuning.journal import EVENTS, Journal
from adept_tune.tuning.record import Record
from adept_tune.tuning.spec import JOURNAL, SPEC, SearchSpec
from tests.support.search import SPACE, properties, spec_fields

SPEC_FIELDS = spec_fields(space={"method": "adept", "parameters": SPACE})
VALUES: dict[type, Any] = {int: 0, float: 0.5, str: "FINISHED", dict: {}, list: []}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment with one line of each kind of event."""
    (tmp_path / SPEC).write_text(json.dumps(SPEC_FIELDS))
    lines = [
        {"event": kind, "time": 1.0} | {name: VALUES[value] for name, value in fields.items()}
        for kind, fields in EVENTS.items()
    ]
    (tmp_path / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def refusal(read: Callable[[], Any]) -> str | None:
    """What reading says where it refuses; any other error escapes."""
    try:
        read()
    except StateError as error:
        return str(error)
    return None


def test_the_sound_folder_is_read(folder):
    record = Record.read(folder)
    assert record.trials[0].state == "FINISHED"
    assert set(progress_of(list(Journal(folder / JOURNAL).read()))) == {"trial-0000", "trial-0000-seed-0"}


@given(content=st.binary(max_size=200))
@properties(60)
def test_random_bytes_for_a_spec_are_refused(folder, content):
    (folder / SPEC).write_bytes(content)
    with pytest.raises(StateError, match=SPEC):
        SearchSpec.read(folder)


@given(name=st.sampled_from(sorted(SPEC_FIELDS)), value=JSON)
@properties(150)
def test_an_edited_spec_is_refused_or_sound(folder, name, value):
    (folder / SPEC).write_text(json.dumps(SPEC_FIELDS | {name: value}))
    told = refusal(lambda: SearchSpec.read(folder))
    if told is None:
        spec = SearchSpec.read(folder)
        assert spec.differences(spec) == []
    else:
        assert SPEC in told


@given(content=st.binary(min_size=1, max_size=200))
@properties(60)
def test_random_bytes_for_a_journal_are_refused_or_a_torn_line(folder, content):
    (folder / JOURNAL).write_bytes(content)
    told = refusal(lambda: list(Journal(folder / JOURNAL).read()))
    assert b"\n" not in content if told is None else f"{JOURNAL}, line " in told


@given(kind=st.sampled_from(sorted(EVENTS)), data=st.data())
@properties(200)
def test_an_event_that_lacks_something_is_refused_with_its_line(folder, kind, data):
    fields = {"time": float} | EVENTS[kind]
    name = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(JSON)
    line = {"event": kind, "time": 1.0} | {name: VALUES[k] for name, k in EVENTS[kind].items()} | {name: value}
    fits = isinstance(value, (int, float) if fields[name] is float else fields[name]) and not isinstance(value, bool)
    with (folder / JOURNAL).open("a") as file:
        file.write(json.dumps(line) + "\n")
    told = refusal(lambda: Record.read(folder))
    text = (folder / JOURNAL).read_text().splitlines(keepends=True)
    (folder / JOURNAL).write_text("".join(text[: len(EVENTS)]))
    if told is None:
        assert fits
    elif fits:
        assert "was never proposed" in told
    else:
        assert f"line {len(EVENTS) + 1}" in told


@pytest.mark.parametrize("name", [SPEC, JOURNAL])
def test_a_command_tells_damage_in_one_message(folder, name, capsys):
    (folder / name).write_text("{}\n" * 3)
    assert report.main(["--experiment", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert name in err


def test_a_folder_that_is_no_experiment_is_told(tmp_path):
    with pytest.raises(SpecError, match="no experiment there"):
        SearchSpec.read(tmp_path)
