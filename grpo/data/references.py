"""The reference answer of a row: a column, a marked part of it, or the letter of the right option."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from grpo import config
from grpo.data.cells import BadRow, cell
from rewards.answers.find import last_box
from rewards.answers.formulas import without_dollars
from rewards.answers.thinking import final_text
from rewards.verifiers.choices import LETTERS


def reference_of(source: config.DatasetConfig, row: dict[str, Any], where: str) -> Any:
    """Return the reference answer of a row. With `choices`, put the options into the row's column `choices`.

    Raises:
        BadRow: the cell is empty, has no mark or no box, or an option is empty.
    """
    if source.choices and source.choices.right:
        return _shuffle(source, source.choices, row)
    value = cell(row, source.reference)
    column = f"column {source.reference!r} ({where}.reference)"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"no value in {column}")
    if source.reference_join is not None and isinstance(value, (list, tuple)):
        value = source.reference_join.join(without_dollars(str(part)) for part in value)
        if not value:
            raise BadRow(f"an empty list in {column}")
    if (source.reference_after is not None or source.reference_boxed) and isinstance(value, str):
        # A model wrote this solution. Its thinking may hold other answers.
        value = final_text(value)
        if value is None:
            raise BadRow(f"thinking that does not end in {column}, so there is no answer after it")
    if source.reference_after is not None:
        _, mark, answer = str(value).rpartition(source.reference_after)
        if not mark or not answer.strip():
            raise BadRow(
                f"no text after {source.reference_after!r} ({where}.reference_after) in {column}: {_end(value)}"
            )
        value = answer.strip()
    if source.reference_boxed:
        boxed = last_box(str(value))
        if boxed is None or not boxed.strip():
            raise BadRow(f"no \\boxed{{...}} ({where}.reference_boxed) in {column}: {_end(value)}")
        value = boxed.strip()
    if source.choices and source.choices.column:
        row["choices"] = _options(source.choices, row)
        return _letter(value, row["choices"])
    return value


def _letter(value: Any, options: list[str]) -> Any:
    """The letter of an index from 0; another value unchanged."""
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or text in options:
        return value
    if int(text) >= len(options):
        raise BadRow(f"the reference {text} is the index of no option; the row has {len(options)} options")
    return LETTERS[int(text)]


def _end(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else "..." + text[-57:])


def _shuffle(source: config.DatasetConfig, choices: config.ChoicesConfig, row: dict[str, Any]) -> str:
    """Put the shuffled options into the row. Return the letter of the correct option."""
    texts = _options(choices, row)
    question = str(cell(row, source.prompt))
    # The order depends on a hash of the texts. So an option keeps its letter, whatever the other rows are.
    order = sorted(range(len(texts)), key=lambda i: hashlib.blake2b(f"{question}/{i}/{texts[i]}".encode()).digest())
    row["choices"] = [texts[i].strip() for i in order]
    return LETTERS[order.index(0)]


def _options(choices: config.ChoicesConfig, row: Mapping[str, Any]) -> list[str]:
    """The texts of the options, the right option first if the columns say which is right."""
    texts = []
    for name in choices.columns:
        value = cell(row, name)
        if isinstance(value, Mapping) and isinstance(value.get("text"), (list, tuple)):
            value = value["text"]
        # A single column may hold several options.
        for text in value if isinstance(value, (list, tuple)) and name != choices.right else [value]:
            if text is None or not str(text).strip():
                raise BadRow(f"an empty option in column {name!r} (choices)")
            texts.append(str(text).strip() if choices.column else str(text))
    if not 2 <= len(texts) <= len(LETTERS):
        raise BadRow(f"{len(texts)} option(s) (choices); expected 2 to {len(LETTERS)}")
    return texts
