"""What the README tells people to type exists."""

import re
import shlex
from pathlib import Path

import pytest

from adept_tune import export, predict, report, retrain, search

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PARSERS = {module.__name__: module.parser for module in (search, retrain, predict, report, export)}
COMMANDS = sorted(
    {line.split("  #")[0].strip() for line in re.findall(r"^ {4}(?:\S*python) -m adept_tune.*$", README, re.M)}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    words = shlex.split(command)
    PARSERS[words[words.index("-m") + 1]]().parse_args(words[words.index("-m") + 2 :])


def test_every_command_line_is_shown():
    shown = {module for module in PARSERS if any(module in command for command in COMMANDS)}
    assert shown == set(PARSERS)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(adept_tune/[\w/]+\.py)`", README))))
def test_file_named_in_the_readme_exists(path):
    assert (ROOT / path).is_file()


def test_every_search_flag_has_help():
    actions = [action for action in search.parser()._actions if action.option_strings]
    assert all(action.help or action.choices for action in actions)
