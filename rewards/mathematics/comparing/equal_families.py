r"""Compares values with a whole-number parameter, residue classes, and functions defined in pieces."""

from __future__ import annotations

from rewards.mathematics.comparing.equal_relations import RelationJudge
from rewards.mathematics.comparing.regions import Region, as_region, rest_of
from rewards.mathematics.nodes import (
    Apply,
    Bound,
    Expression,
    Node,
    Sequence,
    Symbol,
    Text,
    children,
    free_symbols,
    rename,
)
from rewards.mathematics.reading.families import RESIDUE, at, is_family, whole
from rewards.mathematics.reading.parse_environment import OTHERWISE

_FURTHEST_SHIFT = 1e6
_SHARED = Symbol("any whole number")


class FamilyJudge(RelationJudge):
    """Adds families and pieces to the comparison of relations."""

    def _same_family(self, gold: Node, answer: Node) -> bool:
        if not is_family(gold):
            assert is_family(answer)
            return self.same(_as_family_of(answer, gold), _as_plain(answer, gold))
        if not is_family(answer):
            return self.same(_as_plain(gold, answer), _as_family_of(gold, answer))
        return self._same_members(at(gold, _SHARED), at(answer, _SHARED))

    def _same_members(self, gold: Node, answer: Node) -> bool:
        """Whether two families have the same members.

        Their bodies may be equal, or the members may be counted from another start or backwards: k pi and (1-k) pi.
        """
        if self.same(gold, answer):
            return True
        first, other = _first_expression(gold), _first_expression(answer)
        if first is None or other is None:
            return False
        start, step, first_bends = self._line(first)
        begin, stride, other_bends = self._line(other)
        if not step or not stride or first_bends or other_bends or start is None or begin is None:
            return False
        sign = 1 if abs(step - stride) < abs(step + stride) else -1
        shift = round((start - begin) / stride) if abs((start - begin) / stride) < _FURTHEST_SHIFT else None
        if shift is None or abs(step - sign * stride) > 1e-9 * abs(step):
            return False
        counted = Apply("add", (Apply("mul", (whole(sign), _SHARED)), whole(shift)))
        return self.same(gold, rename(answer, {_SHARED.name: counted}))

    def _line(self, node: Node) -> tuple[float | None, float, bool]:
        """Return the value for the parameter 0, the step to the value for 1, and whether the next step differs."""
        places = [self.place(rename(node, {_SHARED.name: whole(k)})) for k in range(3)]
        if places[0] is None or places[1] is None or places[2] is None:
            return None, 0.0, True
        step = places[1] - places[0]
        return places[0], step, abs(places[2] - places[1] - step) > 1e-9 * max(1.0, abs(step))

    def _same_pieces(self, gold: Sequence, answer: Sequence) -> bool:
        """Whether both functions have the same values under the same conditions, in any order."""
        if gold.brackets != answer.brackets or len(gold.items) != len(answer.items):
            return False
        ours, theirs = (self._conditions(each) for each in (gold, answer))
        remaining = list(range(len(theirs)))
        for value, condition in ours:
            for place in remaining:
                other_value, other_condition = theirs[place]
                if self._same_condition(condition, other_condition) and self.same(value, other_value):
                    remaining.remove(place)
                    break
            else:
                return False
        return True

    def _conditions(self, pieces: Sequence) -> list[tuple[Node, Node | Region]]:
        """Return the values and their conditions. "otherwise" becomes the region outside the other conditions."""
        listed = [item.items for item in pieces.items if isinstance(item, Sequence)]
        regions = [as_region(condition, self.place) for _, condition in listed if condition != OTHERWISE]
        rest = rest_of(regions)
        return [
            (value, rest if condition == OTHERWISE and rest is not None else condition) for value, condition in listed
        ]

    def _same_condition(self, gold: Node | Region, answer: Node | Region) -> bool:
        if isinstance(gold, Region) or isinstance(answer, Region):
            left, right = (each if isinstance(each, Region) else as_region(each, self.place) for each in (gold, answer))
            return left is not None and right is not None and self._same_intervals(left, right)
        if isinstance(gold, Text) or isinstance(answer, Text):
            return gold == answer
        return self.same(gold, answer)


def _as_plain(node: Bound, other: Node) -> Node:
    """Return the part of a family that is compared with a node that is not a family.

    This part is the body of the family. If the family is a residue class and the node is a number, it is the class's
    residue.
    """
    return at(node, whole(0)) if node.variable == RESIDUE and not free_symbols(other) else node.body


def _as_family_of(node: Bound, other: Node) -> Node:
    r"""Rename n in `n \pi` to k for the comparison with a family over k, if n is the only variable that is new."""
    unknown = free_symbols(other) - free_symbols(node)
    if len(unknown) != 1 or (node.variable in unknown):
        return other
    return rename(other, {next(iter(unknown)): Symbol(node.variable)})


def _first_expression(node: Node) -> Node | None:
    """Return the first expression that contains the parameter; None if there is none."""
    pending = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, Expression):
            if _SHARED.name in free_symbols(each):
                return each
        else:
            pending.extend(reversed(children(each)))
    return None
