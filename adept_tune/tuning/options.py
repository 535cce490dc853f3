"""Command line values that need more than argparse: durations, numbers or auto, and `--set key=value`."""

from collections.abc import Sequence
from typing import Any

import yaml

from adept_tune.backbones.load import Precision
from adept_tune.errors import SpecError
from adept_tune.methods import METHODS
from adept_tune.tuning.space import Value, settings_of

# `--set` keys that are not settings of a trial, with their kind.
OPTIONS: dict[str, type] = {
    "reduction_factor": float,
    "tokens_per_pass": int,
    "max_failures": int,
    "num_threads": int,
}

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def wall_time_s(text: str | None) -> float | None:
    """Seconds of ``90m``, ``8h`` or ``45s``; a plain number is minutes.

    Raises:
        SpecError: Not a duration, or not positive.
    """
    if text is None:
        return None
    unit = _SECONDS.get(text[-1:], 60.0)
    digits = text[:-1] if text[-1:] in _SECONDS else text
    try:
        seconds = float(digits) * unit
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise SpecError(f"--time-budget {text}: give a time above 0 such as 45s, 90m or 8h")
    return seconds


def whole_number_or_auto(flag: str, text: str) -> int | None:
    """A number of at least 1, or None for ``auto``.

    Raises:
        SpecError: Neither.
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise SpecError(f"{flag} {text}: give a whole number of at least 1, or auto")
    return int(text)


def precision_or_auto(text: str) -> Precision | None:
    """A precision of the backbone, or None for ``auto``.

    Raises:
        SpecError: Neither.
    """
    if text == "fp16":
        raise SpecError(
            "--precision fp16: T5's activations pass its largest number, 65,504, and become infinite; give bf16 or fp32"
        )
    if text not in ("fp32", "bf16", "auto"):
        raise SpecError(f"--precision {text}: give fp32, bf16 or auto")
    return None if text == "auto" else text  # type: ignore[return-value]  # one of the two that are left


def split_settings(pairs: Sequence[str]) -> tuple[dict[str, Value], dict[str, Any]]:
    """Sort `--set` pairs into settings of a trial and options of the search.

    Raises:
        SpecError: Not a pair, or a key that nothing knows.
    """
    names = sorted({name for method in METHODS.values() for name in settings_of(method)})
    fixed: dict[str, Value] = {}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise SpecError(f"--set {pair}: give KEY=VALUE")
        if key in OPTIONS:
            try:
                options[key] = OPTIONS[key](text)
            except ValueError:
                raise SpecError(f"--set {pair}: give a {OPTIONS[key].__name__}") from None
        elif key in names:
            try:
                fixed[key] = yaml.safe_load(text)
            except Exception:  # PyYAML lets the errors of date and int through
                raise SpecError(
                    f"--set {pair}: {text!r} is not a value; give a number, a word, true or false"
                ) from None
        else:
            raise SpecError(f"--set {pair}: unknown key {key!r}; known: {', '.join([*OPTIONS, *names])}")
    return fixed, options
