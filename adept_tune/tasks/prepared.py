"""How rows become fields and answers in the tasks whose columns are not the text of the template as they are.

Each function takes a row and raises `FieldError` where a field is not what it needs.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from adept_tune.tasks.task import FieldError, Row


def wsc_fields(row: Row) -> Mapping[str, str]:
    """Mark the noun with ``*`` and the pronoun with ``#``.

    A span begins at a word, counted from 0, and ends where its text does, before a comma for instance. Where the words
    there are others, as many of them are marked.
    """
    text = str(row["text"])
    found = list(re.finditer(r"\S+", text))
    marks: list[tuple[int, int, str]] = []
    for span, mark in (("span1", "*"), ("span2", "#")):
        name, index, words = f"{span}_index", _value(row, f"{span}_index"), str(row[f"{span}_text"])
        if isinstance(index, str) and index.isascii() and index.isdigit():
            index = int(index)  # from csv
        last = len(found) - len(words.split())
        if not isinstance(index, int) or not 0 <= index <= last:
            raise FieldError(f"field {name!r} is {index!r}; allowed: 0 to {last}")
        begin = found[index].start()
        if not text.startswith(words, begin):
            words = text[begin : found[index + len(words.split()) - 1].end()]
        marks.append((begin, begin + len(words), mark))
    # At one place the inner span ends before the outer one, and begins after it.
    added = [(end, 0, -begin, f" {mark}") for begin, end, mark in marks]
    added += [(begin, 1, -end, f"{mark} ") for begin, end, mark in marks]
    marked, last = "", 0
    for place, _, _, addition in sorted(added):
        marked += text[last:place] + addition
        last = place
    return {"text": marked + text[last:]}


def multirc_fields(row: Row) -> Mapping[str, str]:
    """Take out the markup: bold and line breaks."""
    return {name: re.sub(r"</?(?:b|br) ?/?>", " ", str(row[name])) for name in ("question", "answer", "paragraph")}


def multirc_question(row: Row) -> tuple[int, int]:
    """The question that an answer belongs to."""
    place = _value(row, "idx")
    if isinstance(place, Mapping):
        paragraph, question = place.get("paragraph"), place.get("question")
        if isinstance(paragraph, int) and isinstance(question, int):
            return paragraph, question
    raise FieldError(f"field 'idx' is {place!r}; allowed: a mapping with the numbers of paragraph and question")


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
    # A letter and its mark are made one character where there is such a one.
    return " ".join(re.sub(r"([^\w\s]|_)", r" \1 ", unicodedata.normalize("NFC", text)).split())


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
