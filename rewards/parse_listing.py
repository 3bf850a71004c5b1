"""What the items of a bare list are together: solutions of several variables, residues of one modulus, named values."""

from __future__ import annotations

from rewards.families import FAMILY, RESIDUE, residue
from rewards.nodes import Apply, Bound, Expression, Node, Relation, Sequence, Symbol


def listed(items: list[Node], joiners: list[str]) -> Sequence:
    """The items as one list; `joiners[i]` stands before item i."""
    items = _of_one_modulus(items)
    word = next((each for each in reversed(joiners) if each in ("or", "and")), ",")
    groups = _solutions(items, joiners)
    return Sequence("", tuple(groups or items), word)


def _solutions(items: list[Node], joiners: list[str]) -> list[Node] | None:
    """`p=5, q=2; p=7, q=2` as the solutions (p=5, q=2) and (p=7, q=2), each in the order of its names.

    Solutions are separated by semicolons or "or", their values by commas or "and". None where the items are no such.
    """
    if not any(joiner in (";", "or") for joiner in joiners) or all(joiner in (";", "or", "") for joiner in joiners):
        return None
    groups: list[list[Relation]] = [[]]
    for item, joiner in zip(items, joiners, strict=True):
        if not isinstance(item, Relation) or item.ops != ("=",) or not isinstance(item.sides[0], Symbol):
            return None
        if joiner in (";", "or"):
            groups.append([])
        groups[-1].append(item)
    names = [sorted(str(item.sides[0]) for item in group) for group in groups]
    if len(names[0]) < 2 or len(set(names[0])) < len(names[0]) or any(each != names[0] for each in names):
        return None
    return [Sequence("()", tuple(sorted(group, key=lambda item: str(item.sides[0])))) for group in groups]


def _of_one_modulus(items: list[Node]) -> list[Node]:
    r"""`1, 4 \pmod 5`: a modulus behind the last item is that of all."""
    last = _value(items[-1])
    if not isinstance(last, Bound) or last.op != FAMILY or last.variable != RESIDUE:
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
