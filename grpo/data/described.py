"""The one description of rows: from columns to questions and references, for training and evaluation alike."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from grpo import config
from grpo.data.bad_rows import BadRows
from grpo.data.cells import BadRow, answer_inside, cell, missing_column
from grpo.data.chat import Message, conversation
from grpo.data.references import reference_of
from grpo.data.rows import Source, load_source
from grpo.data.templates import named_columns


@dataclass(frozen=True, slots=True)
class DescribedRow:
    """A row with the parts that a question needs.

    Attributes:
        index: number of the row in the data, from 0.
        id: name of the source or file, and index of the row there.
        question: question as it stands in the row: text or chat messages.
        messages: question as chat messages, with the template and the system message.
        reference: reference answer.
        row: columns of the row, and the options of a multiple-choice row as `choices`.
    """

    index: int
    id: str
    question: Any
    messages: list[Message]
    reference: Any
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DescribedRows:
    """The rows of a source.

    Attributes:
        rows: rows that can be used, in the order of the data.
        left_out: number of rows that are left out, for each kind of problem.
        notes: what a user should know of the data: repeated and contradicting questions.
    """

    rows: tuple[DescribedRow, ...]
    left_out: Counter[str]
    notes: tuple[str, ...]


def describe(source: config.DatasetConfig, where: str = "data") -> DescribedRows:
    """Read a source as questions with references.

    Args:
        source: section of the configuration.
        where: name of the section, for errors.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: the source cannot be read, columns are missing, or rows cannot be used; the message has all of them.
    """
    loaded = load_source(source, where)
    require_columns(loaded, {f"{where}.{key}": name for key, name in _columns(source).items()})
    bad, rows = BadRows(source, loaded.places, where), []
    for index, row in enumerate(loaded.rows.to_list()):
        with bad.reading(index):
            rows.append(_described(source, loaded, index, row, where))
    left_out = bad.left_out(len(loaded.rows))
    # A list of tests may be shown to the policy, but an answer may not.
    shown = source.reference in named_columns(source.template)
    if shown and not isinstance(rows[0].reference, (list, dict)):
        raise ValueError(
            f"{where}.template contains {{{source.reference}}}, the column of the reference answer, so the policy "
            "would read the answer; remove it from the template"
        )
    return DescribedRows(tuple(rows), left_out, tuple(_notes(rows, where)))


def _described(
    source: config.DatasetConfig, loaded: Source, index: int, row: dict[str, Any], where: str
) -> DescribedRow:
    question = question_of(source, row, where)
    reference = reference_of(source, row, where)
    messages = conversation(source, question, row, where)
    return DescribedRow(index, loaded.places.id_of(index), question, messages, reference, row)


def question_of(source: config.DatasetConfig, row: dict[str, Any], where: str) -> Any:
    """Return the question of a row.

    Raises:
        BadRow: it is empty.
    """
    question = cell(row, source.prompt)
    if question is None or (isinstance(question, str) and not question.strip()):
        raise BadRow(f"no question in column {source.prompt!r} ({where}.prompt)")
    return question


def require_columns(loaded: Source, named: dict[str, str]) -> None:
    """Refuse columns that the data do not have.

    Args:
        loaded: the data.
        named: config key -> column.

    Raises:
        ValueError: columns are missing; the message has all of them.
    """
    problems = [missing_column(loaded.rows, name, key) for key, name in named.items()]
    problems += [answer_inside(loaded.rows, name, key) for key, name in named.items() if key.endswith(".reference")]
    if any(problems):
        raise ValueError("\n".join(filter(None, problems)))


def _columns(source: config.DatasetConfig) -> dict[str, str]:
    named = {"prompt": source.prompt}
    if source.choices:
        named |= {f"choices ({name})": name for name in source.choices.columns}
    if not (source.choices and source.choices.right):
        named["reference"] = source.reference
    return named


def _notes(rows: list[DescribedRow], where: str) -> list[str]:
    references: dict[str, list[str]] = {}
    for row in rows:
        answers = references.setdefault(json.dumps(row.messages, default=str, sort_keys=True), [])
        answers.append(json.dumps(row.reference, default=str, sort_keys=True))
    repeated = sum(len(answers) - 1 for answers in references.values())
    contradicting = sum(len(set(answers)) > 1 for answers in references.values())
    notes = []
    if repeated:
        notes.append(f"{repeated} of {len(rows)} rows of {where} repeat the question of an earlier row")
    if contradicting:
        notes.append(f"{contradicting} question(s) of {where} stand in several rows with different reference answers")
    return notes
