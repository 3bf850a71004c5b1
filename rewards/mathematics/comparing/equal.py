"""Decides whether two parsed answers are equal: by their form, then by exact values, then by approximate values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import TypeGuard

from rewards.mathematics.comparing.equal_families import FamilyJudge
from rewards.mathematics.comparing.equal_values import is_set
from rewards.mathematics.comparing.rational import Budget, TooLarge
from rewards.mathematics.comparing.regions import infinite
from rewards.mathematics.conventions import DEFAULT, Conventions
from rewards.mathematics.nodes import (
    Apply,
    Bound,
    Expression,
    Matrix,
    Node,
    Number,
    Quantity,
    RatioNode,
    Relation,
    Sequence,
    Text,
    children,
)
from rewards.mathematics.reading.families import both_signs, has_sign, is_family
from rewards.mathematics.reading.spelled import without_echo
from rewards.mathematics.reading.vectors import plain_vector

_TUPLES = frozenset(("()", "[]", "[)", "(]", "<>"))
_BETWEEN_WORDS = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+")


class Undecided(Exception):
    """The budget ran out, or no stage can decide."""


def equal(gold: Node, answer: Node, conventions: Conventions = DEFAULT, budget: Budget | None = None) -> bool:
    """Whether `answer` equals `gold`.

    Raises:
        Undecided: the budget does not suffice. The message names the stage that was reached.
    """
    judge = Judge(conventions, budget or Budget())
    try:
        return judge.same(gold, answer)
    except TooLarge as problem:
        raise Undecided(f"{judge.stage}: {problem}") from None


def undecidable(gold: Node, conventions: Conventions = DEFAULT) -> str:
    """Return the stage at which every comparison with this reference fails; empty if comparisons work.

    Each expression of the reference is compared with one and a half times itself, and with its square.
    """
    pending, stuck = [gold], ""
    while pending and not stuck:
        node = pending.pop()
        if not isinstance(node, Expression) or isinstance(node, Bound) or is_set(node):
            pending.extend(children(node))
            continue
        for other in (Apply("mul", (Number(Fraction(3, 2)), node)), Apply("pow", (node, Number(Fraction(2))))):
            judge = Judge(conventions, Budget())
            try:
                judge.same(node, other)
            except TooLarge as problem:
                stuck = f"{judge.stage}: {problem}"
            else:
                stuck = ""
                break
    return stuck


class Judge(FamilyJudge):
    """Completes the comparison: it decides by the form of two nodes, and compares matrices, tuples, sets and lists."""

    def same(self, gold: Node, answer: Node) -> bool:
        """Compare two nodes by their form, and pass their parts to the comparison for this form."""
        self.budget.spend(100)
        if gold == answer:
            return True
        gold, answer = _spread(gold), _spread(answer)
        if isinstance(gold, Text) or isinstance(answer, Text):
            return isinstance(gold, Text) and isinstance(answer, Text) and self._same_words(gold.words, answer.words)
        if (is_family(gold) or is_family(answer)) and _may_be_family(gold) and _may_be_family(answer):
            return self._same_family(gold, answer)
        if isinstance(gold, Expression) and isinstance(answer, Expression):
            if isinstance(gold, Bound) or isinstance(answer, Bound):
                return self._same_bound(gold, answer)
            return self._same_value(gold, answer)
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return self._same_relation(gold, answer)
        if isinstance(gold, (Quantity, RatioNode)) or isinstance(answer, (Quantity, RatioNode)):
            return self._same_measure(gold, answer)
        if isinstance(gold, Apply) or isinstance(answer, Apply):
            gold, answer = plain_vector(gold) or gold, plain_vector(answer) or answer
        if _is_pieces(gold) or _is_pieces(answer):
            return _is_pieces(gold) and _is_pieces(answer) and self._same_pieces(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self._same_matrix(gold, answer)
        return self._same_collection(gold, answer)

    def _same_words(self, gold: str, answer: str) -> bool:
        """True when the words are the same. If they are a list without brackets, their order does not matter."""
        if gold == answer or without_echo(answer) == without_echo(gold):
            return True
        ours, theirs = (_BETWEEN_WORDS.split(words) for words in (gold, answer))
        return not self.conventions.ordered and len(ours) > 1 and sorted(ours) == sorted(theirs)

    def _same_matrix(self, gold: Node, answer: Node) -> bool:
        left, right = _rows(gold), _rows(answer)
        if left is None or right is None:
            return False
        kind, rows = left
        other_kind, other_rows = right
        if "tuple" in (kind, other_kind) and 1 in (len(rows), len(rows[0])) and kind != other_kind:
            # A tuple may be a row or a column vector, so (1, 2) equals both.
            rows = (tuple(cell for row in rows for cell in row),)
            other_rows = (tuple(cell for row in other_rows for cell in row),)
        elif kind != other_kind:
            return False
        return len(rows) == len(other_rows) and all(
            len(row) == len(other) and all(self.same(a, b) for a, b in zip(row, other, strict=True))
            for row, other in zip(rows, other_rows, strict=True)
        )

    def _same_collection(self, gold: Node, answer: Node) -> bool:
        either_computed = isinstance(gold, (Apply, Bound)) or isinstance(answer, (Apply, Bound))
        if either_computed and self._same_region(gold, answer):
            return True
        left, right = self._items(gold), self._items(answer)
        if left is None or right is None:
            return False
        (kind, items), (other_kind, others) = left, right
        if "list" not in (kind, other_kind) and kind != other_kind:
            # A set with a single value equals this value. A tuple with a single value does not.
            return {kind, other_kind} == {"single", "set"} and self._matched(items, others)
        if kind == other_kind == "tuple":
            return self._same_tuple(gold, items, answer, others)
        if "tuple" in (kind, other_kind):
            # A list with the two ends of an interval does not say whether the ends belong to the interval.
            return not _is_interval(gold) and not _is_interval(answer) and self._list_as_tuple(kind, items, others)
        if "single" in (kind, other_kind) and len(items) != len(others):
            # "1/2 or 0.5" lists the same value twice, so it is a single candidate.
            single, listed = (items[0], others) if kind == "single" else (others[0], items)
            return kind == "single" and len(listed) > 0 and all(self.same(single, item) for item in listed)
        if "set" in (kind, other_kind):
            items, others = self._distinct(items), self._distinct(others)
        named = kind == other_kind == "list" and self._name_different_things(items, others)
        if named and _has_names(gold) and _has_names(answer):
            return False  # "x = 2, x = 3" does not give a value of y
        if named or self.conventions.ordered:
            return len(items) == len(others) and all(self.same(a, b) for a, b in zip(items, others, strict=True))
        if self._matched(items, others):
            return True
        if kind == other_kind == "list" and len(others) > len(items) > 1:
            # An item that the gold answer repeats is not a further value.
            return self._matched(items, self._distinct(others))
        return "list" in (kind, other_kind) and self._same_region(gold, answer)

    def _items(self, node: Node) -> tuple[str, tuple[Node, ...]] | None:
        if not isinstance(node, Sequence):
            return ("single", (node,)) if isinstance(node, (*Expression, Quantity, RatioNode)) else None
        if node.brackets == "{}" and node.items and all(isinstance(item, Relation) for item in node.items):
            return "list", node.items  # {x = 2, y = 3} is a solution, not a set of numbers
        kind = {"{}": "set", "": "list"}.get(node.brackets, "tuple")
        if kind == "tuple":
            return kind, node.items
        if kind == "set":
            return kind, tuple(part for item in node.items for part in _parts(_spread(item)))
        items: list[Node] = []
        for at, item in enumerate(node.items):
            item = _spread(item)
            named = self._named(item) if at == 0 and isinstance(item, Relation) else None
            if named is not None and not any(isinstance(each, Relation) for each in node.items[1:]):
                item = _spread(named.value)  # for "x = 2, 3", both values belong to x
            items.extend(_parts(item))
        return kind, tuple(self._same_name_values(items))

    def _same_name_values(self, items: list[Node]) -> Iterable[Node]:
        """Return the values without names if all items assign to one variable (`x = 2 or x = 3`), else the items."""
        named = [self._named(item) for item in items]
        if len(items) > 1 and all(each is not None and each.name == named[0].name for each in named if named[0]):
            return [each.value for each in named if each is not None] if None not in named else items
        return items

    def _name_different_things(self, items: tuple[Node, ...], others: tuple[Node, ...]) -> bool:
        """True when only one side has names, and the names differ: `x = 2, y = 3` and `2, 3`.

        The values without names are then in the order of the names. But names that differ only in
        the subscript, as in `x_1 = 2, x_2 = 3`, have no order.
        """
        sides = [[self._named(item) for item in side if isinstance(item, Relation)] for side in (items, others)]
        if sorted(map(len, sides)) != [0, len(items)] or len(items) < 2:
            return False
        names = [each.name if each is not None else "" for each in sides[0] + sides[1]]
        return all(names) and len({name.partition("_")[0] for name in names}) == len(names)

    def _distinct(self, items: tuple[Node, ...]) -> tuple[Node, ...]:
        kept: list[Node] = []
        for item in items:
            if not any(self.same(item, other) for other in kept):
                kept.append(item)
        return tuple(kept)

    def _same_tuple(self, gold: Node, items: tuple[Node, ...], answer: Node, others: tuple[Node, ...]) -> bool:
        assert isinstance(gold, Sequence) and isinstance(answer, Sequence)
        if len(items) != len(others):
            return False
        loose = {"<>": "()", "[]": "()"} if len(items) > 2 else {"<>": "()"}
        if loose.get(gold.brackets, gold.brackets) != loose.get(answer.brackets, answer.brackets):
            return False
        return all(self.same(a, b) for a, b in zip(items, others, strict=True))

    def _list_as_tuple(self, kind: str, items: tuple[Node, ...], others: tuple[Node, ...]) -> bool:
        """Compare a list without brackets with a tuple.

        Assignments are ordered by their names; values keep their order.
        """
        listed, ordered = (items, others) if kind == "list" else (others, items)
        if kind == "single" or len(listed) != len(ordered):
            return False
        named = [self._named(item) for item in listed]
        known = [each for each in named if each is not None and each.name]
        if known:
            if len(known) != len(listed) or len({each.name for each in known}) != len(known):
                return False
            listed = tuple(each.value for each in sorted(known, key=lambda each: each.name))
        pairs = zip(listed, ordered, strict=True)
        return all(self.same(b, a) if kind == "list" else self.same(a, b) for a, b in pairs)

    def _matched(self, items: tuple[Node, ...], others: tuple[Node, ...]) -> bool:
        """Whether the items can be paired one to one.

        Each item takes its first match, because equality is transitive.
        """
        if len(items) != len(others):
            return False
        remaining = list(others)
        for item in items:
            for at, other in enumerate(remaining):
                if self.same(item, other):
                    del remaining[at]
                    break
            else:
                return False
        return True


def _may_be_family(node: Node) -> bool:
    """True for expressions, and for tuples and intervals, because their items may contain a parameter."""
    return isinstance(node, Expression) or (isinstance(node, Sequence) and node.brackets in _TUPLES)


def _is_pieces(node: Node) -> TypeGuard[Sequence]:
    return isinstance(node, Sequence) and node.brackets == "cases"


def _has_names(node: Node) -> bool:
    return isinstance(node, Sequence) and any(isinstance(item, Relation) for item in node.items)


def _is_interval(node: Node) -> bool:
    """True for two ends with a square bracket or an infinite end.

    `(1, 2)` may be a point, and `[1, 2, 3]` is a list.
    """
    if not isinstance(node, Sequence) or len(node.items) != 2 or node.brackets not in ("()", "[]", "[)", "(]"):
        return False
    return node.brackets != "()" or any(infinite(item) for item in node.items)


def _spread(node: Node) -> Node:
    r"""`1 \pm 2` as the list of its two values: every `\pm` has the same sign, every `\mp` the opposite sign."""
    if isinstance(node, Relation):
        return Relation(tuple(_spread(side) for side in node.sides), node.ops)
    return Sequence("", both_signs(node)) if has_sign(node) else node


def _parts(node: Node) -> tuple[Node, ...]:
    """The items of a list without brackets. Any other node is a single item."""
    return node.items if isinstance(node, Sequence) and node.brackets == "" else (node,)


def _rows(node: Node) -> tuple[str, tuple[tuple[Node, ...], ...]] | None:
    if isinstance(node, Matrix):
        return node.kind, node.rows
    if not isinstance(node, Sequence) or node.brackets not in ("[]", "()", "<>") or not node.items:
        return None
    nested = [item.items for item in node.items if isinstance(item, Sequence) and item.brackets in ("[]", "()")]
    if len(nested) == len(node.items) and len({len(row) for row in nested}) == 1 and nested[0]:
        return "matrix", tuple(nested)
    return "tuple", (node.items,)
