"""Tasks of `grpo eval`: find and read their files, and turn their rows into problems."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import datasets

from grpo.config import file as config_file
from grpo.config.evaluation import TaskConfig
from grpo.data.rows import HubUnreachable, load_rows
from grpo.evaluation.examples import in_window
from rewards.answers.formulas import without_dollars
from rewards.judging import columns_of

FOLDER = Path(__file__).parent / "tasks"
_LETTERS = "ABCDEFGHIJ"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_ ]*)\}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of a task.

    Attributes:
        id: name of the task and index of the row.
        question: text of the question, before any chat template.
        reference: reference answer for the verifier.
        row: columns of the row, as the verifier gets them (`rewards.judging.columns_of`).
        digest: digest of question and reference. Two problems with equal digests are the same problem.
    """

    id: str
    question: str
    reference: Any
    row: Mapping[str, Any]
    digest: str


def task_names() -> list[str]:
    """Return the names of the tasks in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_task(named: str, overrides: Sequence[str] = ()) -> TaskConfig:
    """Read a task.

    Args:
        named: name of a task in the package, or path of a YAML file.
        overrides: overrides `key=value`, for example `data.prompt=question`.

    Raises:
        ValueError: there is no such task (the message gives the nearest name), or its file has problems.
    """
    path = Path(named)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{named}.yaml"
        if not path.is_file() and "," in named:
            each = " ".join(f"--task {part.strip()}" for part in named.split(",") if part.strip())
            raise ValueError(f"--task takes one task, got {named!r}; repeat it: {each}")
        if not path.is_file():
            near = difflib.get_close_matches(named, task_names(), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"there is no task {named!r}; {hint}known: {', '.join(task_names())}; "
                "or give the path of a task file, path/to/task.yaml"
            )
    return config_file.load(TaskConfig, path, overrides)


def load_problems(task: TaskConfig, limit: int | None = None) -> list[Problem]:
    """Load the task's problems, in the order of its data.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: the data do not exist, a column is missing, or a required cell is empty.
    """
    rows = _rows(task)
    if task.window:
        rows = rows.filter(functools.partial(in_window, task.window), load_from_cache_file=False)
    if limit:
        rows = rows.select(range(min(limit, len(rows))))
    needed = [task.data.prompt]
    needed += [task.choices.right, *task.choices.wrong] if task.choices else [task.data.reference]
    for column in needed:
        if column not in rows.column_names:
            near = difflib.get_close_matches(column, rows.column_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"task {task.name}: {column!r} is not a column of the data, which has {', '.join(rows.column_names)}"
                f"{hint} Name the right one, for example task.data.prompt=..."
            )
    return [_problem(task, index, row) for index, row in enumerate(rows.to_list())]


def _rows(task: TaskConfig) -> datasets.Dataset:
    if not task.files or task.data.path:
        try:
            return load_rows(task.data, "task.data")
        except HubUnreachable as failure:
            raise HubUnreachable(
                f"task {task.name}: the hub does not answer for {task.data.hub!r} ({failure.__cause__}); give a local "
                f"copy: --task {task.name} --data FILE"
            ) from failure
    # `datasets` no longer reads repositories with a loading script, but it reads their files.
    revision = f"@{quote(task.data.revision, safe='')}" if task.data.revision else ""
    urls = [f"hf://datasets/{task.data.hub}{revision}/{name}" for name in task.files]
    try:
        return datasets.load_dataset("json", data_files=urls, split="train")
    except (ConnectionError, FileNotFoundError) as failure:
        raise HubUnreachable(
            f"the files of {task.data.hub!r} cannot be read from the hub ({failure}); give a local copy with --data"
        ) from failure


def _problem(task: TaskConfig, index: int, row: dict[str, Any]) -> Problem:
    name = f"{task.name}:{index}"
    row = dict(row)
    reference = _shuffle(task, name, row) if task.choices else _reference(task, row[task.data.reference])
    if reference is None or row[task.data.prompt] in (None, ""):
        raise ValueError(f"{name}: the row has no question or no reference; mend the data or leave the row out")
    if isinstance(row[task.data.prompt], list | dict):
        raise ValueError(f"{name}: column {task.data.prompt!r} holds no text; name a column of questions")
    question = _fill(task.data.template, {**row, "prompt": row[task.data.prompt]})
    digest = hashlib.blake2b(
        json.dumps([question, reference], sort_keys=True, default=str).encode(), digest_size=12
    ).hexdigest()
    return Problem(name, question, reference, columns_of(question, row), digest)


def _reference(task: TaskConfig, value: Any) -> Any:
    if task.reference_join is not None and isinstance(value, list):
        return task.reference_join.join(without_dollars(str(part)) for part in value) or None
    if task.reference_after is not None and value is not None:
        _, mark, answer = str(value).rpartition(task.reference_after)
        return answer.strip() or None if mark else None
    return value


def _shuffle(task: TaskConfig, name: str, row: dict[str, Any]) -> str:
    """Put the shuffled options into the row. Return the letter of the correct option."""
    assert task.choices is not None
    texts = [row[column] for column in (task.choices.right, *task.choices.wrong)]
    if any(text in (None, "") for text in texts):
        raise ValueError(f"{name}: an option is empty; mend the data or leave the row out")
    question = str(row[task.data.prompt])
    # The order depends on a hash of the texts. So an option keeps its letter, whatever the other rows are.
    order = sorted(range(len(texts)), key=lambda i: hashlib.blake2b(f"{question}/{i}/{texts[i]}".encode()).digest())
    options = [str(texts[i]).strip() for i in order]
    row["choices"] = options
    return _LETTERS[order.index(0)]


def _fill(template: str, row: Mapping[str, Any]) -> str:
    def cell(match: re.Match[str]) -> str:
        if match[1] not in row:
            return match[0]
        value = row[match[1]]
        if match[1] == "choices" and isinstance(value, list):
            return "\n".join(f"{letter}) {text}" for letter, text in zip(_LETTERS, value, strict=False))
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

    return _PLACEHOLDER.sub(cell, template)
