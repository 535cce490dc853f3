"""How rows become fields and answers in the tasks whose columns are not the text of the template as they are.

Each function takes a row and raises `FieldError` where a field is not what it needs.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adept_tune.tasks.task import FieldError, Row


def wsc_fields(row: Row) -> Mapping[str, str]:
    """Mark the noun with ``*`` and the pronoun with ``#``; the spans are counted in words."""
    words = str(row["text"]).split(" ")
    for span, mark in (("span1", "*"), ("span2", "#")):
        text, first = str(row[f"{span}_text"]).split(" "), _value(row, f"{span}_index")
        if isinstance(first, str) and first.isascii() and first.isdigit():
            first = int(first)  # from csv
        if not isinstance(first, int) or not 0 <= first <= len(words) - len(text):
            raise FieldError(f"field '{span}_index' is {first!r}; allowed: 0 to {len(words) - len(text)}")
        # Inside the word, so that the other span keeps its count.
        words[first] = f"{mark} {words[first]}"
        words[first + len(text) - 1] += f" {mark}"
    return {"text": " ".join(words)}


def multirc_fields(row: Row) -> Mapping[str, str]:
    """Take the markup out of the paragraph."""
    plain = {name: str(row[name]) for name in ("question", "answer", "paragraph")}
    plain["paragraph"] = html.unescape(re.sub(r"<[^<>]+>", " ", plain["paragraph"]))
    return plain


def multirc_question(row: Row) -> tuple[int, int]:
    """The question that an answer belongs to."""
    place = _value(row, "idx")
    if not isinstance(place, Mapping) or not {"paragraph", "question"} <= set(place):
        raise FieldError(f"field 'idx' is {place!r}; allowed: a mapping with the numbers of paragraph and question")
    return int(place["paragraph"]), int(place["question"])


def record_fields(row: Row) -> Mapping[str, str]:
    """List the entities; the highlights below the passage become sentences of it."""
    passage = re.sub(r"([.?!\"'])?\s*\n@highlight\n", lambda end: f"{end[1] or '.'} ", str(row["passage"]))
    return {"query": str(row["query"]), "entities": ", ".join(_texts(row, "entities")), "passage": passage}


def record_answers(row: Row) -> Sequence[str]:
    """The entities that fill the gap, each once."""
    return list(dict.fromkeys(_texts(row, "answers")))


def record_row_an_answer(row: Row) -> Sequence[Row]:
    """A row for each of its answers, as if that were the only one."""
    return [{**row, "answers": [answer]} for answer in record_answers(row)]


def spaced_question(row: Row) -> Mapping[str, str]:
    """Question and context with a space on both sides of each character that is neither letter nor digit."""
    return {name: _spaced(str(row[name])) for name in ("question", "context")}


def spaced_answers(row: Row) -> Sequence[str]:
    """The right answers, spaced as the context is from which they are taken."""
    return list(dict.fromkeys(_spaced(text) for text in _texts(row, "answers")))


def first_spaced_answer(row: Row) -> Sequence[str]:
    """The first of them alone, as the published code has it."""
    return spaced_answers(row)[:1]


def mbpp_fields(row: Row) -> Mapping[str, str]:
    """What is asked for, and the tests, which tell the function's name."""
    return {"text": str(row["text"]), "tests": " ".join(_texts(row, "test_list"))}


def mbpp_answers(row: Row) -> Sequence[str]:
    """The program."""
    code = _value(row, "code")
    if not isinstance(code, str):
        raise FieldError(f"field 'code' is {code!r}; allowed: a program")
    return [code.replace("\r\n", "\n")]


def mbpp_tests(row: Row) -> Sequence[str]:
    """What has to stand before a program, then its tests."""
    return [str(row.get("test_setup_code") or ""), *_texts(row, "test_list")]


def _spaced(text: str) -> str:
    return " ".join(re.sub(r"([^A-Za-z0-9_])", r" \1 ", text).split())


def _value(row: Row, name: str) -> Any:
    if name not in row:
        raise FieldError(f"field {name!r} is missing; the row has {', '.join(row) or 'no fields'}")
    return row[name]


def _texts(row: Row, name: str) -> list[str]:
    """A field that is a list of texts."""
    texts = _value(row, name)
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise FieldError(f"field {name!r} is {texts!r}; allowed: a list of texts")
    return list(texts)
