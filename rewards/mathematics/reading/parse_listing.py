"""Finds the meaning of a list without brackets: solutions of several variables, residues of a modulus, named values."""

from __future__ import annotations

from rewards.mathematics.nodes import Apply, Bound, Expression, Node, Relation, Sequence, Symbol
from rewards.mathematics.reading.families import RESIDUE, is_family, residue


def listed(items: list[Node], joiners: list[str]) -> Sequence:
    """Join the items to one list. `joiners[i]` is the connective before item i."""
    items = _of_one_modulus(items)
    word = next((each for each in reversed(joiners) if each in ("or", "and")), ",")
    groups = _solutions(items, joiners)
    return Sequence("", tuple(groups or items), word)


def _solutions(items: list[Node], joiners: list[str]) -> list[Node] | None:
    """Read `p=5, q=2; p=7, q=2` as the solutions (p=5, q=2) and (p=7, q=2), each ordered by its names.

    Semicolons or "or" separate the solutions; commas or "and" separate the values of a solution. Return None for other
    items.
    """
    if not any(joiner in (";", "or") for joiner in joiners) or all(joiner in (";", "or", "") for joiner in joiners):
        return None
    groups: list[dict[str, Node]] = [{}]
    for item, joiner in zip(items, joiners, strict=True):
        if joiner in (";", "or"):
            groups.append({})
        name = item.sides[0] if isinstance(item, Relation) and item.ops == ("=",) else None
        if not isinstance(name, Symbol) or name.name in groups[-1]:
            return None
        groups[-1][name.name] = item
    names = sorted(groups[0])
    if len(names) < 2 or any(sorted(group) != names for group in groups):
        return None
    return [Sequence("()", tuple(group[name] for name in names)) for group in groups]


def _of_one_modulus(items: list[Node]) -> list[Node]:
    r"""Apply a modulus after the last item to all items, as in `1, 4 \pmod 5`."""
    last = _value(items[-1])
    if not is_family(last) or last.variable != RESIDUE:
        return items
    assert isinstance(last.body, Apply)
    modulus = last.body.args[1]
    assert isinstance(modulus, Apply)
    result: list[Node] = []
    for item in items[:-1]:
        value = _value(item)
        if not isinstance(value, Expression) or isinstance(value, Bound):
            return items
        inside = residue(value, modulus.args[0])
        result.append(Relation((*item.sides[:-1], inside), item.ops) if isinstance(item, Relation) else inside)
    return [*result, items[-1]]


def _value(item: Node) -> Node:
    return item.sides[-1] if isinstance(item, Relation) else item
