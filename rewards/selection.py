"""Chooses the verifiers that judge a row of mixed data. A column of the row names the kind of its task."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rewards.build import VerifierSpec


def place_of(name: str) -> str:
    """The name of a row for messages: `row 7 of rows.jsonl` for `rows.jsonl:7`. Rows count from 0.

    A number after a file's name would look like a line number.
    """
    source, _, number = name.rpartition(":")
    return f"row {number} of {source}" if source and number.isdecimal() else f"row {name}"


class Conditional(Protocol):
    """A line of the config that holds only for some rows."""

    @property
    def when(self) -> Mapping[str, Sequence[Any]]:
        """Accepted values for each named column."""
        ...


def applies(spec: Conditional, row: Mapping[str, Any]) -> bool:
    """True when the row has a listed value in every column of the spec's `when`, or the spec has no `when`."""
    return all(one_of(row.get(column), values) for column, values in spec.when.items())


def choose(specs: Sequence[VerifierSpec], row: Mapping[str, Any]) -> tuple[VerifierSpec, ...]:
    """The verifiers that judge a row, in the order of the config.

    The first of them decides whether an answer is right.
    """
    return tuple(spec for spec in specs if applies(spec, row))


def check_rows(specs: Sequence[VerifierSpec], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Check that every row has the verifiers that it needs. `rows` has the name and the columns of each row.

    A row needs a verifier with a weight. If the first verifier has a `when`, verifiers are chosen by the kind of a row.
    Then each row also needs a verifier with a `when`. Otherwise a row whose kind is misspelt would be judged only by
    verifiers for all rows, such as a check of the format.

    Raises:
        ValueError: a row lacks a verifier; the message has the row's values and the values of the verifiers' `when`.
    """
    conditional = [spec for spec in specs if spec.when]
    if not conditional:
        return
    by_kind = bool(specs[0].when)
    columns = list(dict.fromkeys(column for spec in conditional for column in spec.when))
    passed: set[tuple[str, ...]] = set()
    for name, row in rows:
        kind = tuple(repr(row.get(column)) for column in columns)
        if kind in passed:
            continue
        missing = [column for column in columns if column not in row]
        if missing:
            near = difflib.get_close_matches(missing[0], list(row), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{place_of(name)} has no column {missing[0]!r}, which verifiers[].when needs; it has "
                f"{', '.join(row)}{hint}"
            )
        chosen = choose(specs, row)
        if not any(spec.weight for spec in chosen) or (by_kind and not any(spec.when for spec in chosen)):
            raise ValueError(_refusal(name, row, columns, conditional, chosen))
        passed.add(kind)


def one_of(value: Any, wanted: Sequence[Any]) -> bool:
    """True when a value of a row is one of the wanted values."""
    # In Python, 1 == True, but here the number 1 must not match the truth value True.
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in wanted)


def _refusal(
    name: str,
    row: Mapping[str, Any],
    columns: Sequence[str],
    conditional: Sequence[VerifierSpec],
    chosen: Sequence[VerifierSpec],
) -> str:
    has = ", ".join(f"{column}={row[column]!r}" for column in columns)
    known = "; ".join(
        f"{spec.name}: " + ", ".join(f"{column} is {' or '.join(map(repr, v))}" for column, v in spec.when.items())
        for spec in conditional
    )
    weightless = f" but {', '.join(spec.name for spec in chosen)}" if chosen else ""
    return (
        f"{place_of(name)} has {has}, for which no verifier{weightless} is configured (known: {known}); correct the "
        "row, leave it out, or add its value to a verifier's `when`"
    )
