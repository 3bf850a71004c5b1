"""Tasks of `grpo eval`: find and read their files, and turn their rows into problems.

A window of dates says which rows are problems, and solved examples may stand before each question.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import file as config_file
from grpo.config.evaluation import TaskConfig, WindowConfig
from grpo.data.described import DescribedRow, describe
from grpo.data.rows import HubUnreachable, load_rows
from rewards.judging import columns_of
from rewards.selection import one_of, place_of

FOLDER = Path(__file__).parent / "tasks"
_COLUMN = re.compile(r"\{([A-Za-z_]\w*)\}")


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
    limits = [each for each in (limit, task.data.limit) if each]
    most = min(limits) if limits else None
    # A window and `when` choose among all rows, so they come before the limit.
    data = task.data.model_copy(update={"limit": None if task.window or task.when else most})
    try:
        described = describe(data, "task.data")
    except HubUnreachable as failure:
        raise HubUnreachable(f"{failure}, or with --data") from failure
    window = task.window
    rows = [row for row in described.rows if in_window(window, row.row)] if window else list(described.rows)
    if task.when:
        rows = _chosen(task, rows)
    return [_problem(task, row) for row in rows[:most]]


def _chosen(task: TaskConfig, rows: Sequence[DescribedRow]) -> list[DescribedRow]:
    """The rows with the values of `when`."""
    if missing := [column for column in task.when if rows and column not in rows[0].row]:
        raise ValueError(
            f"task.when names the column {missing[0]!r}, which the data do not have; they have "
            f"{', '.join(rows[0].row)}. Name another column, or take all rows: task.when=null"
        )
    wanted = {column: value if isinstance(value, tuple) else (value,) for column, value in task.when.items()}
    chosen = [row for row in rows if all(one_of(row.row.get(column), values) for column, values in wanted.items())]
    if not chosen:
        raise ValueError(f"none of the {len(rows)} rows has the values of task.when={task.when}; correct the values")
    return chosen


def repeats_line(task: str, problems: Sequence[Problem]) -> str | None:
    """Return a sentence about problems that repeat an earlier question; None if there are none."""
    answers: dict[str, set[str]] = {}
    for problem in problems:
        answers.setdefault(problem.question, set()).add(problem.digest)
    repeated, disagree = len(problems) - len(answers), sum(len(digests) > 1 for digests in answers.values())
    if not repeated:
        return None
    others = f"; {disagree:,} of these questions have different references" if disagree else ""
    return (
        f"{task}: {repeated:,} of {len(problems):,} problems repeat the question of an earlier problem{others}. "
        "Each of them counts in all numbers"
    )


def _problem(task: TaskConfig, row: DescribedRow) -> Problem:
    if not isinstance(row.question, str):
        raise ValueError(
            f"{place_of(row.id)}: column {task.data.prompt!r} holds chat messages; name a column of plain text "
            "with task.data.prompt"
        )
    question = row.messages[-1]["content"]
    digest = hashlib.blake2b(
        json.dumps([question, row.reference], sort_keys=True, default=str).encode(), digest_size=12
    ).hexdigest()
    return Problem(f"{task.name}:{row.index}", question, row.reference, columns_of(question, row.row), digest)


def with_shots(task: TaskConfig) -> TaskConfig:
    """Return the task with its solved examples before the question in its template.

    Raises:
        ValueError: the data of the examples cannot be read, have too few rows, or lack a column of the template.
    """
    shots = task.shots
    if shots is None:
        return task
    source = task.data.model_copy(update={"split": shots.split, "path": shots.path})
    try:
        rows = load_rows(source, "task.shots")
    except HubUnreachable as failure:
        raise HubUnreachable(f"the {shots.count} solved examples of {task.name} are missing: {failure}") from failure
    if len(rows) < shots.count:
        raise ValueError(
            f"task {task.name}: {len(rows)} rows are too few for task.shots.count={shots.count} examples; lower it"
        )
    examples = [_example(task.name, shots.template, row) for row in rows.select(range(shots.count)).to_list()]
    template = "\n\n".join([*examples, task.data.template])
    return task.model_copy(update={"data": task.data.model_copy(update={"template": template})})


def _example(task: str, template: str, row: Mapping[str, Any]) -> str:
    missing = [name for name in _COLUMN.findall(template) if name not in row]
    if missing:
        raise ValueError(
            f"task {task}: {missing[0]!r} in task.shots.template is not a column of the examples, which have "
            f"{', '.join(row)}"
        )
    return _COLUMN.sub(lambda match: str(row[match[1]]), template)


def in_window(window: WindowConfig, row: Mapping[str, Any]) -> bool:
    """Whether the day of a row lies in the window, its first and last day included.

    Raises:
        ValueError: the row has no such column, or no day in it.
    """
    # The JSON reader may turn text into a time stamp. Both forms begin with the day.
    day = str(row.get(window.column, ""))[:10]
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
        raise ValueError(
            f"window.column={window.column!r}: expected a date such as 2025-01-31 in every row, got {day!r}; name the "
            "column with the date, task.window.column=..., or remove the window: task.window=null"
        )
    return window.first <= day <= window.last
