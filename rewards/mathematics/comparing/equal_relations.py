"""Compares equations, inequalities, regions of the real line, and values with a name."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from rewards.mathematics.comparing.equal_measures import MeasureJudge
from rewards.mathematics.comparing.equal_values import MAX_SYMBOLS, POINTS, cross, measured
from rewards.mathematics.comparing.evaluate import TRIGONOMETRY, canonical
from rewards.mathematics.comparing.regions import Region, as_region
from rewards.mathematics.nodes import (
    Apply,
    Expression,
    Node,
    Number,
    Quantity,
    RatioNode,
    Relation,
    Sequence,
    Symbol,
    free_symbols,
    rename,
    walk,
)


@dataclass(frozen=True, slots=True)
class Named:
    """`name = value`, and the parameters if the name is a function.

    `first` is the first side of a chain that has a unit but no name.
    """

    name: str
    value: Node
    parameters: tuple[str, ...] = ()
    first: Node | None = None


class RelationJudge(MeasureJudge):
    """Adds relations to the comparison of quantities."""

    def _same_relation(self, gold: Node, answer: Node) -> bool:
        named, other = self._named(gold), self._named(answer)
        if named is not None or other is not None:
            return self._same_named(gold, named, answer, other)
        if self._same_region(gold, answer):
            return True
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return self._same_chain(gold, answer)
        return False

    def _same_named(self, gold: Node, named: Named | None, answer: Node, other: Named | None) -> bool:
        if named is not None and other is not None:
            if _names_of_words_agree(named.name, other.name):
                return self.same(named.value, other.value)
            if named.name != other.name or len(named.parameters) != len(other.parameters):
                # y = x/2 and x = 2y name different variables but are the same equation. x = 3 and y = 3 are not the
                # same.
                return bool(free_symbols(named.value)) and self._same_chain(gold, answer)
            if named.parameters != other.parameters:
                swap: dict[str, Node] = {
                    theirs: Symbol(ours) for theirs, ours in zip(other.parameters, named.parameters, strict=True)
                }
                return self.same(named.value, rename(other.value, swap))
            return self.same(named.value, other.value)
        if named is not None:
            if isinstance(answer, Relation):
                # `y - 2x - 3 = 0` equals `y = 2x + 3`, but an unsolved equation does not equal `x = 3`.
                return _may_be_rearranged(gold, named) and self._same_chain(gold, answer)
            return self.same(named.value, answer)
        assert other is not None
        if isinstance(gold, Relation):
            return _may_be_rearranged(answer, other) and self._same_chain(gold, answer)
        # "60 seconds = 1 minute": both sides are the answer, and the reference may equal either of them.
        return self.same(gold, other.value) or (other.first is not None and self.same(gold, other.first))

    def _named(self, node: Node) -> Named | None:
        """Read `x = 5`, `5 = x`, `f(2) = 5`, `AB = 5`, `n = 3 + 4 = 7`, `5 = 5.0`, `x ~ 5` as a name and its value."""
        if not isinstance(node, Relation) or any(op not in "=~" for op in node.ops):
            return None
        sides = list(node.sides)
        if "~" in node.ops:
            # The value after "about" is a rounded form of the value before it.
            first = node.ops.index("~")
            sides = sides[: first + 1] if first > 0 or _name_of(sides[0]) is None else sides[:2]
            if len(sides) == 1:
                return Named("", sides[0])
        if len(sides) == 2 and _name_of(sides[1]) is not None and _name_of(sides[0]) is None:
            sides.reverse()
        name = _name_of(sides[0])
        if name is None or _name_of(sides[0]) in free_symbols(sides[-1]):
            if free_symbols(node) or not self._chain_agrees(sides):
                return None
            return Named("", sides[-1], first=sides[0] if any(map(_has_unit, sides)) else None)
        if not self._chain_agrees(sides[1:]):
            return None
        left = sides[0]
        if isinstance(left, Apply) and left.op.startswith("call ") and all(isinstance(a, Symbol) for a in left.args):
            return Named(left.op, sides[-1], tuple(a.name for a in left.args if isinstance(a, Symbol)))
        return Named(name, _in_name_order(left, sides[-1]))

    def _chain_agrees(self, sides: list[Node]) -> bool:
        return all(self.same(sides[-1], side) for side in sides[:-1])

    def _same_chain(self, gold: Node, answer: Node) -> bool:
        """Equations may differ by a constant factor that is not zero, inequalities by a positive constant factor."""
        if not isinstance(gold, Relation) or not isinstance(answer, Relation):
            return False
        (ours, op), (theirs, other_op) = _difference(gold), _difference(answer)
        if ours is None or theirs is None:
            return gold.ops == answer.ops and all(
                self.same(a, b) for a, b in zip(gold.sides, answer.sides, strict=True)
            )
        if op != other_op or free_symbols(ours) != free_symbols(theirs):
            return False
        return self._proportional(ours, theirs, positive=op != "=", clear=op == "=")

    def _proportional(self, ours: Node, theirs: Node, positive: bool, clear: bool) -> bool:
        """Whether `ours / theirs` is the same at all points.

        Each point is compared with the first by cross products.
        """
        names = sorted(free_symbols(ours))
        if not names or len(names) > MAX_SYMBOLS:
            return self._equal_values(ours, theirs)
        anchor: tuple[Node, Node] | None = None
        for row in reversed(POINTS):
            swap: dict[str, Node] = {name: Number(Fraction(row[at % 8] + at // 8)) for at, name in enumerate(names)}
            here = (rename(ours, swap), rename(theirs, swap))
            if anchor is None:
                ratio = self._sign(here)
                if ratio is None:
                    continue
                if positive and ratio < 0:
                    return False
                anchor = here
            elif self._equal_at(cross(anchor[0], here[1]), cross(anchor[1], here[0]), {}, False) is False:
                return clear and self._same_where_zero(ours, theirs)
        return anchor is not None

    def _same_where_zero(self, ours: Node, theirs: Node) -> bool:
        """Compare equations such as `xy = 1` and `y = 1/x`: without denominators, they must be proportional."""
        cleared = [_numerator(each) for each in (ours, theirs)]
        return self._proportional(cleared[0], cleared[1], positive=False, clear=False)

    def _sign(self, pair: tuple[Node, Node]) -> float | None:
        places = [self.place(each) for each in pair]
        if places[0] is None or places[1] is None or 0.0 in places:
            return None
        return places[0] / places[1]

    def _same_region(self, gold: Node, answer: Node) -> bool:
        left = as_region(gold, self.place)
        right = as_region(answer, self.place) if left is not None else None
        if left is None or right is None or not (left.intervals and right.intervals):
            return False
        return self._same_intervals(left, right)

    def _same_intervals(self, left: Region, right: Region) -> bool:
        if left.variable and right.variable and left.variable != right.variable:
            return False
        return len(left.intervals) == len(right.intervals) and all(
            a.low_in == b.low_in and a.high_in == b.high_in and self.same(a.low, b.low) and self.same(a.high, b.high)
            for a, b in zip(left.intervals, right.intervals, strict=True)
        )


def _has_unit(node: Node) -> bool:
    return isinstance(node, Quantity) or measured(node)


def _name_of(node: Node) -> str | None:
    """The name of a left-hand side: a variable, a function's value, a segment, a sum or product of variables."""
    if isinstance(node, Symbol):
        return node.name
    if isinstance(node, Apply) and node.op.startswith("call "):
        return canonical(node)
    if isinstance(node, (Sequence, RatioNode)) and node.items and all(map(_is_segment, node.items)):
        return canonical(node)
    if isinstance(node, Apply) and _is_function_of_names(node):
        return canonical(node)
    symbols = free_symbols(node)
    plain = all(isinstance(each, (Symbol, Apply)) for each in walk(node))
    named = plain and (len(symbols) > 1 or (len(symbols) == 1 and next(iter(symbols)).isupper()))
    return canonical(node) if named and isinstance(node, Apply) else None


def _names_of_words_agree(name: str, other: str) -> bool:
    r"""True for names such as `\text{Area}` and `A`, or `\text{min}` and `\text{minimum}`, but not `\text{max}`."""
    words, letters = "\\text ", 3
    if not name.startswith(words) and not other.startswith(words):
        return False
    both = name.startswith(words) and other.startswith(words)
    return not both or name[: len(words) + letters] == other[: len(words) + letters]


def _may_be_rearranged(node: Node, named: Named) -> bool:
    r"""Whether an equation says more than the value of one variable. `y = 2x` and `2\sin x = 1` do."""
    functional = isinstance(node, Relation) and any(
        isinstance(side, Apply) and _is_function_of_names(side) for side in node.sides
    )
    return functional or bool(free_symbols(named.value))


def _is_segment(node: Node) -> bool:
    """True for a variable, and for a product of them such as AB."""
    parts = node.args if isinstance(node, Apply) and node.op == "mul" else (node,)
    return all(isinstance(part, Symbol) for part in parts)


def _is_function_of_names(node: Apply) -> bool:
    r"""True for `\sin\alpha`, `\cos^2 2A`, `|z|`: a function's value of named things, or a power of it."""
    if node.op == "pow" and isinstance(node.args[1], Number) and isinstance(node.args[0], Apply):
        node = node.args[0]
    return (node.op in TRIGONOMETRY or node.op == "abs") and bool(free_symbols(node))


def _in_name_order(names: Node, value: Node) -> Node:
    """Sort a tuple of values by their names, so that `(y, x) = (2, 1)` gives the value of `(x, y)`."""
    if not isinstance(names, Sequence) or not isinstance(value, Sequence) or len(names.items) != len(value.items):
        return value
    order = sorted(range(len(names.items)), key=lambda at: repr(names.items[at]))
    return Sequence(value.brackets, tuple(value.items[at] for at in order))


def _difference(node: Relation) -> tuple[Node | None, str]:
    """Rewrite a relation of two sides as `difference op 0` with op `=`, `<`, `<=` or `!=`; None for longer chains."""
    if len(node.ops) != 1 or not all(isinstance(side, Expression) for side in node.sides):
        return None, ""
    op, (left, right) = node.ops[0], node.sides
    if op in (">", ">="):
        op, left, right = "<" + op[1:], right, left
    if op not in ("=", "<", "<=", "!="):
        return None, ""
    return Apply("add", (left, Apply("neg", (right,)))), op


def _numerator(node: Node) -> Node:
    """The difference of two sides, multiplied by their denominators."""
    assert isinstance(node, Apply)
    left, negated = node.args
    assert isinstance(negated, Apply)
    right = negated.args[0]
    (above, below), (other, under) = _parts(left), _parts(right)
    return Apply("add", (cross(above, under), Apply("neg", (cross(other, below),))))


def _parts(node: Node) -> tuple[Node, Node]:
    if isinstance(node, Apply) and node.op == "div":
        return node.args[0], node.args[1]
    return node, Number(Fraction(1))
