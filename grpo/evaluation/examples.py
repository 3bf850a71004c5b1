"""What stands before a task's question, and which rows are its problems: solved examples, and a window of dates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo.config.evaluation import TaskConfig, WindowConfig
from grpo.data.rows import HubUnreachable, load_rows

_COLUMN = re.compile(r"\{([A-Za-z_]\w*)\}")


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
