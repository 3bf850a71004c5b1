"""Values in a row: columns, dots into nested columns, lists and JSON text, and the message about a missing column."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

from rewards.written_values import value_of

# Rows that are read to find the keys inside a column of JSON text.
_LOOKED_AT = 20
# Columns that a message lists.
_SHOWN = 40


class BadRow(ValueError):
    """A row that cannot be used. The message does not name the row."""


def cell(row: Mapping[str, Any], name: str) -> Any:
    """Return a row's value in a column. Dots lead into nested columns, lists (`turns.0`) and JSON text (`info.answer`).

    The result is None if there is no such value.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value_of(value)
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def missing_column(rows: datasets.Dataset, name: str, key: str) -> str | None:
    """Return a message if no row can have a value in a column; else None.

    Args:
        rows: rows of the data.
        name: name of the column, with dots if it is nested.
        key: config key that names the column, for the message.
    """
    known = column_names(rows.features)
    if name in rows.column_names or name in known:
        return None
    first, *inner = name.split(".")
    if inner and first in rows.column_names:
        looked_at = rows.select(range(min(_LOOKED_AT, len(rows))))
        values = looked_at[first][:]
        if any(cell({first: value}, name) is not None for value in values):
            return None
        known += _json_names(first, values)
    near = difflib.get_close_matches(name, known, n=1) or [each for each in known if each.endswith(f".{name}")][:1]
    near = near or [each for each in known if each.startswith(f"{name}.")][:1]
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    return f"{key}={name!r} is not a column of the data; it has {listed}{hint}"


def answer_inside(rows: datasets.Dataset, name: str, key: str) -> str | None:
    """Return a message if a reference column holds objects that have the answer as `ground_truth`; else None.

    verl and SYNTHETIC-1 write such rows, as nested columns or as JSON text.
    """
    values = [value_of(cell(row, name)) for row in rows.select(range(min(_LOOKED_AT, len(rows)))).to_list()]
    inside = next((value for value in values if isinstance(value, Mapping) and "ground_truth" in value), None)
    if inside is None:
        return None
    return f"{key}={name!r} is a column with {', '.join(map(str, inside))}; did you mean {name}.ground_truth?"


def _json_names(column: str, values: list[Any]) -> list[str]:
    """The keys of the objects in a column of JSON text, with dots."""
    insides = [value_of(value) for value in values if isinstance(value, str)]
    keys = dict.fromkeys(key for inside in insides if isinstance(inside, Mapping) for key in inside)
    return [f"{column}.{key}" for key in keys]


def column_names(features: Mapping[str, Any], before: str = "") -> list[str]:
    """Return the names of all columns, with dots for nested columns."""
    names = []
    for name, feature in features.items():
        nested = isinstance(feature, Mapping) and feature
        names += column_names(feature, f"{before}{name}.") if nested else [f"{before}{name}"]
    return names
