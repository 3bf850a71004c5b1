"""What a run's conversations have as tools and environments, as plain data that any process can read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.selection import applies, place_of

# Tools that run in the sandbox: a session lives as long as its conversation.
SANDBOX_TOOLS = ("python", "bash")
# For each name in the config: the class.
BUILT_IN: Mapping[str, str] = {
    "gym": "grpo.environments.gym:Gym",
    "maze": "grpo.environments.maze:Maze",
}


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """An environment of the config.

    Attributes:
        use: built-in name (`maze`, `gym`), `package.module:Class` or `file.py:Class`.
        options: keyword arguments of the class.
        when: accepted values for each named column. The environment plays only the rows that have an accepted value in
            each of these columns; without `when`, it plays all rows.
    """

    use: str
    options: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """The tools and environments of a run.

    Attributes:
        tools: `python`, `bash`, `package.module:function` or `file.py:function`.
        environments: environments, in the order of the config.
        folder: folder of relative file names; empty for the working folder.
        tool_deadline_s: longest time for the tool calls of a turn, in seconds.
        python: settings of the sandbox session behind `python`.
        bash: settings of the sandbox session behind `bash`.
    """

    tools: tuple[str, ...] = ()
    environments: tuple[EnvironmentSpec, ...] = ()
    folder: str = ""
    tool_deadline_s: float = 30.0
    python: Mapping[str, Any] = field(default_factory=dict)
    bash: Mapping[str, Any] = field(default_factory=dict)


def located_name(use: str, folder: str) -> str:
    """Return `use` with the folder before the name of a relative file."""
    module, colon, attribute = use.rpartition(":") if ":" in use else (use, "", "")
    return f"{Path(folder) / module}{colon}{attribute}" if folder and module.endswith(".py") else use


def choose_environment(spec: WorldSpec, row: Mapping[str, Any]) -> int | None:
    """Return the number of the environment that plays a row; None if no environment plays it.

    Raises:
        ValueError: several environments play the row.
    """
    chosen = [at for at, each in enumerate(spec.environments) if applies(each, row)]
    if len(chosen) > 1:
        names = ", ".join(spec.environments[at].use for at in chosen)
        raise ValueError(
            f"several environments play the same row: {names}; give each a `when` with other values, so that a row "
            "has only one environment"
        )
    return chosen[0] if chosen else None


def check_rows(spec: WorldSpec, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Check that the rows fit the environments' `when`.

    Args:
        spec: tools and environments.
        rows: name and columns of each row.

    Raises:
        ValueError: a row has not the column of a `when`, several environments play a row, or an environment plays no
            row, so its `when` is probably misspelt.
    """
    columns = {column: each.use for each in spec.environments for column in each.when}
    played: set[int | None] = set()
    for name, row in rows:
        for column in columns:
            if column not in row:
                near = difflib.get_close_matches(column, list(row), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{place_of(name)} has no column {column!r}, which the `when` of the environment "
                    f"{columns[column]!r} needs; it has {', '.join(row)}{hint}"
                )
        try:
            played.add(choose_environment(spec, row))
        except ValueError as problem:
            raise ValueError(f"{place_of(name)}: {problem}") from problem
    for at, each in enumerate(spec.environments):
        if rows and at not in played:
            values = ", ".join(f"{column} is {' or '.join(map(repr, among))}" for column, among in each.when.items())
            raise ValueError(
                f"the environment {each.use!r} plays no row: no row has a value of its `when` ({values}); correct the "
                "`when`, or remove the environment"
            )
