"""Whether two parsed answers are equal: first by their form, then by exact values, then by approximate ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rewards import stage
from rewards.evaluate import canonical, compare
from rewards.nodes import (
    Apply,
    Bound,
    Constant,
    Expression,
    Matrix,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    Sequence,
    Symbol,
    Text,
    Unit,
    free_symbols,
    rename,
    walk,
)  # fmt: skip
from rewards.rational import Budget, Irrational, TooLarge, Undefined, exact
from rewards.regions import Region, as_region, infinite


@dataclass(frozen=True, slots=True)
class Conventions:
    r"""What counts as the same answer, where people disagree.

    Attributes:
        percent: `either`: gold `p%` is matched by `p%`, `p/100` and bare `p`; `value`: by `p%` and `p/100`;
            `strict`: by `p%` alone.
        units: `missing`: a unit missing on one side is ignored, two different ones are not equal; `strict`: both
            must have it; `ignore`: units are not looked at.
        ordered: bare lists and sets must be in the gold's order.
        rounded: a gold decimal is also matched by an answer that rounds to it at the gold's last digit. Off: an
            exact gold is never matched by a rounded answer, nor a rounded gold by an exact one.
        bare_base: a gold in a base is also matched by its digits without the base.
        log_base: 10 or, for 0, e: what `\log` without a base means.
        decimal_comma: `3,14` may be read as 3.14 where the gold is a single number.
    """

    percent: Literal["either", "value", "strict"] = "either"
    units: Literal["missing", "strict", "ignore"] = "missing"
    ordered: bool = False
    rounded: bool = False
    bare_base: bool = False
    log_base: int = 10
    decimal_comma: bool = True

    def __post_init__(self) -> None:
        if self.percent not in ("either", "value", "strict"):
            raise ValueError(f"percent must be 'either', 'value' or 'strict', got {self.percent!r}")
        if self.units not in ("missing", "strict", "ignore"):
            raise ValueError(f"units must be 'missing', 'strict' or 'ignore', got {self.units!r}")
        if self.log_base != 0 and self.log_base < 2:
            raise ValueError(f"log_base must be 0 (for e) or a whole number above 1, got {self.log_base!r}")


DEFAULT = Conventions()
_HUNDRED = Number(Fraction(100))
_ANGLE = (("angle", 1),)
# Where free variables are tried: whole numbers (for factorials and (-1)^n, both parities), fractions on both sides
# of 1, and negative ones (which tell |x| from x). Coincidences would need a root of the difference at every point.
_WHOLE = ((8, 5, 11, 14, 3, 17, 6, 9), (5, 12, 3, 7, 10, 4, 15, 2))
_FRACTIONS = (
    tuple(Fraction(n, 97) for n in (223, 61, 349, 151, 83, 419, 197, 29)),
    tuple(Fraction(-n, 89) for n in (151, 307, 71, 211, 53, 367, 113, 31)),
    tuple(Fraction(n, 101) for n in (67, 401, 139, 53, 251, 89, 307, 179)),
)
_POINTS: tuple[tuple[Fraction, ...], ...] = (*(tuple(map(Fraction, row)) for row in _WHOLE), *_FRACTIONS)
_NEGATIVE_POINT = 3
_MAX_SYMBOLS = 24


class Undecided(Exception):
    """The budget ran out, or no stage can tell."""


@dataclass(frozen=True, slots=True)
class _Named:
    """`name = value`, with the parameters of a function's definition."""

    name: str
    value: Node
    parameters: tuple[str, ...] = ()


def equal(gold: Node, answer: Node, conventions: Conventions = DEFAULT, budget: Budget | None = None) -> bool:
    """Whether `answer` is to be accepted for `gold`.

    Raises:
        Undecided: it cannot be told within the budget; the message says at which stage.
    """
    judge = _Judge(conventions, budget or Budget())
    try:
        return judge.same(gold, answer)
    except TooLarge as problem:
        raise Undecided(f"{judge.stage}: {problem}") from None


class _Judge:
    def __init__(self, conventions: Conventions, budget: Budget) -> None:
        self.conventions, self.budget, self.stage = conventions, budget, "structure"

    def at(self, name: str) -> None:
        """Note the stage, for the reason of a timeout."""
        if name != self.stage:
            self.stage = name
            stage.enter(name)

    def same(self, gold: Node, answer: Node) -> bool:
        """The comparison by form; each case hands its parts on."""
        self.budget.spend(100)
        if gold == answer:
            return True
        gold, answer = _spread(gold), _spread(answer)
        if isinstance(gold, Text) or isinstance(answer, Text):
            return isinstance(gold, Text) and isinstance(answer, Text) and gold.words == answer.words
        if isinstance(gold, Expression) and isinstance(answer, Expression):
            if isinstance(gold, Bound) or isinstance(answer, Bound):
                return self._same_bound(gold, answer)
            return self._same_value(gold, answer)
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return self._same_relation(gold, answer)
        if isinstance(gold, (Quantity, Ratio)) or isinstance(answer, (Quantity, Ratio)):
            return self._same_measure(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return self._same_matrix(gold, answer)
        return self._same_collection(gold, answer)

    # Values

    def _same_value(self, gold: Node, answer: Node) -> bool:
        if _measured(gold) or _measured(answer):
            return self._same_measure(gold, answer)
        sign, other = infinite(gold), infinite(answer)
        if sign or other:
            return sign == other
        for op in ("union", "intersection", "difference"):
            if isinstance(gold, Apply) and isinstance(answer, Apply) and gold.op == answer.op == op:
                return (
                    self._same_region(gold, answer)
                    or canonical(gold) == canonical(answer)
                    or (op != "difference" and self._matched(gold.args, answer.args))
                )
        if self.conventions.bare_base and isinstance(gold, Number) and isinstance(answer, Number):
            return gold.value == answer.value or (answer.bare is None and answer.value == gold.bare)
        if self.conventions.rounded and isinstance(gold, Number) and gold.decimals:
            return self._rounds_to(gold, answer)
        return self._equal_values(gold, answer)

    def _equal_values(self, gold: Node, answer: Node) -> bool:
        names = sorted(free_symbols(gold) | free_symbols(answer))
        if not names:
            return self._equal_at(gold, answer, {}, real_only=False) is True
        if len(names) > _MAX_SYMBOLS:
            raise TooLarge(f"{len(names)} variables")
        decided = 0
        for number, row in enumerate(_POINTS):
            env = {name: Fraction(row[at % 8] + at // 8) for at, name in enumerate(names)}
            verdict = self._equal_at(gold, answer, env, real_only=number == _NEGATIVE_POINT)
            if verdict is False:
                return False
            decided += verdict is True
        if not decided:
            if canonical(gold) == canonical(answer):
                return True
            raise TooLarge("no point where both have a value")
        return True

    def _equal_at(self, gold: Node, answer: Node, env: dict[str, Fraction], real_only: bool) -> bool | None:
        """Equality at one point; None where it says nothing.

        With `real_only`, complex values say nothing: ln(x^2) = 2 ln x is meant where both sides are real.
        """
        self.at("exact values")
        try:
            try:
                left: Fraction | None = exact(gold, env, self.budget)
            except Irrational:
                left = None
            try:
                right: Fraction | None = exact(answer, env, self.budget)
            except Irrational:
                right = None
            if left is not None and right is not None:
                return left == right
        except Undefined:
            return None if env else False
        except TooLarge:
            if self.budget.left < 0:
                raise
            return self._large(gold, answer, env)
        self.at("approximate values")
        try:
            same, real = compare(gold, answer, env, self.budget, self.conventions.log_base)
        except Undefined:
            return None if env else False
        return None if real_only and not real else same

    def _large(self, gold: Node, answer: Node, env: dict[str, Fraction]) -> bool | None:
        """Values too large to be exact: a clear difference still tells; agreement to a hundred digits does not."""
        self.at("approximate values")
        if canonical(gold) == canonical(answer):
            return True
        try:
            same, _ = compare(gold, answer, env, self.budget, self.conventions.log_base)
        except Undefined:
            return None
        if same and not env:
            raise TooLarge("equal to a hundred digits, but too large for an exact comparison")
        return same

    def _rounds_to(self, gold: Number, answer: Node) -> bool:
        half = Fraction(1, 2 * 10 ** (gold.decimals or 0))
        if free_symbols(answer):
            return False
        try:
            return abs(exact(answer, {}, self.budget) - gold.value) <= half
        except (Irrational, Undefined):
            place = self.place(answer)
            return place is not None and abs(place - float(gold.value)) <= float(half)

    def place(self, node: Node) -> float | None:
        """Where a real constant lies on the line, to float precision; None where it is no such thing."""
        from rewards.evaluate import FLOATS, Evaluation

        if not isinstance(node, Expression) or free_symbols(node):
            return None
        try:
            value = Evaluation(FLOATS, {}, self.budget, self.conventions.log_base).value(node)
        except (Undefined, TooLarge):
            return None
        return float(value.real) if abs(value.imag) < 1e-9 * max(1.0, abs(value)) else None

    def _same_bound(self, gold: Node, answer: Node) -> bool:
        """Sums, integrals and set builders: the same limits, and the same body once the bound variable is renamed."""
        if not isinstance(gold, Bound) or not isinstance(answer, Bound):
            return False
        if gold.op != answer.op or len(gold.limits) != len(answer.limits):
            return self._same_region(gold, answer)
        if not all(self.same(a, b) for a, b in zip(gold.limits, answer.limits, strict=True)):
            return False
        shared = Symbol("bound")
        bodies = (rename(each.body, {each.variable: shared}) for each in (gold, answer))
        return self.same(*bodies)

    # Quantities, percents, degrees, ratios

    def _same_measure(self, gold: Node, answer: Node) -> bool:
        gold_percent, answer_percent = _under("percent", gold), _under("percent", answer)
        if gold_percent is not None or answer_percent is not None:
            return self._same_percent(gold, gold_percent, answer, answer_percent)
        if isinstance(gold, Ratio) or isinstance(answer, Ratio):
            return self._same_ratio(gold, answer)
        (value, unit), (other, other_unit) = _quantity(gold), _quantity(answer)
        if not isinstance(value, Expression) or not isinstance(other, Expression):
            return False
        if self.conventions.units == "ignore":
            return self._equal_values(value, other)
        if unit is not None and other_unit is not None:
            if unit.dimensions != other_unit.dimensions:
                return False
            return self._equal_values(_times(unit.factor, value), _times(other_unit.factor, other))
        if self.conventions.units == "strict":
            return False
        if self._equal_values(value, other):
            return True
        # A bare number beside an angle in degrees may be in radians, but only one with pi says that it is.
        angle, bare = (gold, answer) if unit is not None else (answer, gold)
        if (unit or other_unit) != Unit(Fraction(1), _ANGLE) or Constant("pi") not in set(walk(bare)):
            return False
        return self._equal_values(angle, bare)

    def _same_percent(self, gold: Node, gold_percent: Node | None, answer: Node, answer_percent: Node | None) -> bool:
        if gold_percent is not None and answer_percent is not None:
            return self._equal_values(gold_percent, answer_percent)
        if self.conventions.percent == "strict":
            return False
        percent, bare = (gold_percent, answer) if gold_percent is not None else (answer_percent, gold)
        assert percent is not None
        if not isinstance(bare, Expression) or _measured(bare):
            return False
        if self._equal_values(Apply("div", (percent, _HUNDRED)), bare):
            return True
        return self.conventions.percent == "either" and self._equal_values(percent, bare)

    def _same_ratio(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Ratio) and isinstance(answer, Ratio):
            if gold.exact_clock and answer.exact_clock:
                return gold.clock == answer.clock
            if gold.exact_clock or answer.exact_clock or (gold.clock is not None and answer.clock is not None):
                return answer.clock == gold.clock or self._half_day(gold, answer)
            if gold.clock is not None and _two_digit(answer):
                return False
            return len(gold.items) == len(answer.items) and all(
                self._equal_values(_cross(a, answer.items[0]), _cross(b, gold.items[0]))
                for a, b in zip(gold.items[1:], answer.items[1:], strict=True)
            )
        ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
        assert isinstance(ratio, Ratio)
        if ratio.clock is not None or len(ratio.items) != 2 or not isinstance(other, Expression):
            return False
        return self._equal_values(Apply("div", ratio.items), other)

    def _half_day(self, gold: Ratio, answer: Ratio) -> bool:
        """`3:30` for `3:30 p.m.`: the half of the day is a unit, and may be missing on one side."""
        if gold.exact_clock == answer.exact_clock or gold.clock is None or answer.clock is None:
            return False
        bare = answer if gold.exact_clock else gold
        return 3600 <= (bare.clock or 0) < 13 * 3600 and (gold.clock - answer.clock) % (12 * 3600) == 0

    # Relations

    def _same_relation(self, gold: Node, answer: Node) -> bool:
        named, other = self._named(gold), self._named(answer)
        if named is not None or other is not None:
            return self._same_named(gold, named, answer, other)
        if self._same_region(gold, answer):
            return True
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return self._same_chain(gold, answer)
        return False

    def _same_named(self, gold: Node, named: _Named | None, answer: Node, other: _Named | None) -> bool:
        if named is not None and other is not None:
            if named.name != other.name or len(named.parameters) != len(other.parameters):
                # y = x/2 and x = 2y name different variables and are one equation; x = 3 and y = 3 are not.
                return bool(free_symbols(named.value)) and self._same_chain(gold, answer)
            if named.parameters != other.parameters:
                swap: dict[str, Node] = {
                    theirs: Symbol(ours) for theirs, ours in zip(other.parameters, named.parameters, strict=True)
                }
                return self.same(named.value, rename(other.value, swap))
            return self.same(named.value, other.value)
        if named is not None:
            if isinstance(answer, Relation):
                # `y - 2x - 3 = 0` for `y = 2x + 3`, but no equation still to be solved for `x = 3`.
                return bool(free_symbols(named.value)) and self._same_chain(gold, answer)
            return self.same(named.value, answer)
        assert other is not None
        if isinstance(gold, Relation):
            return bool(free_symbols(other.value)) and self._same_chain(gold, answer)
        return self.same(gold, other.value)

    def _named(self, node: Node) -> _Named | None:
        """Read `x = 5`, `5 = x`, `f(2) = 5`, `AB = 5`, `n = 3 + 4 = 7`, `5 = 5.0`, `x ~ 5` as a name and its value."""
        if not isinstance(node, Relation) or any(op not in "=~" for op in node.ops):
            return None
        sides = list(node.sides)
        if "~" in node.ops:
            # What follows "about" is a rounding of what stands before.
            first = node.ops.index("~")
            sides = sides[: first + 1] if first > 0 or _name_of(sides[0]) is None else sides[:2]
            if len(sides) == 1:
                return _Named("", sides[0])
        if len(sides) == 2 and _name_of(sides[1]) is not None and _name_of(sides[0]) is None:
            sides.reverse()
        name = _name_of(sides[0])
        if name is None or _name_of(sides[0]) in free_symbols(sides[-1]):
            if free_symbols(node) or not self._chain_agrees(sides):
                return None
            return _Named("", sides[-1])
        if not self._chain_agrees(sides[1:]):
            return None
        left = sides[0]
        if isinstance(left, Apply) and left.op.startswith("call ") and all(isinstance(a, Symbol) for a in left.args):
            return _Named(left.op, sides[-1], tuple(a.name for a in left.args if isinstance(a, Symbol)))
        return _Named(name, _in_name_order(left, sides[-1]))

    def _chain_agrees(self, sides: list[Node]) -> bool:
        return all(self.same(sides[-1], side) for side in sides[:-1])

    def _same_chain(self, gold: Node, answer: Node) -> bool:
        """Equations up to a factor that is not zero, inequalities up to a positive constant one."""
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
        """Whether `ours / theirs` is one constant at all points: compared as cross products with the first point."""
        names = sorted(free_symbols(ours))
        if not names or len(names) > _MAX_SYMBOLS:
            return self._equal_values(ours, theirs)
        anchor: tuple[Node, Node] | None = None
        for row in reversed(_POINTS):
            swap: dict[str, Node] = {name: Number(Fraction(row[at % 8] + at // 8)) for at, name in enumerate(names)}
            here = (rename(ours, swap), rename(theirs, swap))
            if anchor is None:
                ratio = self._sign(here)
                if ratio is None:
                    continue
                if positive and ratio < 0:
                    return False
                anchor = here
            elif self._equal_at(_cross(anchor[0], here[1]), _cross(anchor[1], here[0]), {}, False) is False:
                return clear and self._same_where_zero(ours, theirs)
        return anchor is not None

    def _same_where_zero(self, ours: Node, theirs: Node) -> bool:
        """Equations such as `xy = 1` and `y = 1/x`: multiplying by the denominators must make them proportional."""
        cleared = [_numerator(each) for each in (ours, theirs)]
        if cleared[0] == ours and cleared[1] == theirs:
            return False
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

    # Matrices and collections

    def _same_matrix(self, gold: Node, answer: Node) -> bool:
        left, right = _rows(gold), _rows(answer)
        if left is None or right is None:
            return False
        kind, rows = left
        other_kind, other_rows = right
        if "tuple" in (kind, other_kind) and 1 in (len(rows), len(rows[0])) and kind != other_kind:
            # (1, 2) for a vector: a tuple is neither a row nor a column.
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
            # A single value in set braces is that value; in a tuple it is not.
            return {kind, other_kind} == {"one", "set"} and self._matched(items, others)
        if kind == other_kind == "tuple":
            return self._same_tuple(gold, items, answer, others)
        if "tuple" in (kind, other_kind):
            return self._list_as_tuple(kind, items, others)
        if "one" in (kind, other_kind) and len(items) != len(others):
            return False
        if "set" in (kind, other_kind):
            items, others = self._distinct(items), self._distinct(others)
        if self.conventions.ordered:
            return len(items) == len(others) and all(self.same(a, b) for a, b in zip(items, others, strict=True))
        if self._matched(items, others):
            return True
        return "list" in (kind, other_kind) and self._same_region(gold, answer)

    def _items(self, node: Node) -> tuple[str, tuple[Node, ...]] | None:
        if not isinstance(node, Sequence):
            return ("one", (node,)) if isinstance(node, (*Expression, Quantity, Ratio)) else None
        if node.brackets == "{}" and node.items and all(isinstance(item, Relation) for item in node.items):
            return "list", node.items  # {x = 2, y = 3} is a solution, not a set of numbers
        kind = {"{}": "set", "": "list"}.get(node.brackets, "tuple")
        if kind != "list":
            return kind, node.items
        items: list[Node] = []
        for at, item in enumerate(node.items):
            item = _spread(item)
            named = self._named(item) if at == 0 and isinstance(item, Relation) else None
            if named is not None and not any(isinstance(each, Relation) for each in node.items[1:]):
                item = _spread(named.value)  # "x = 2, 3"
            items.extend(item.items if isinstance(item, Sequence) and item.brackets == "" else (item,))
        return kind, tuple(self._same_name_values(items))

    def _same_name_values(self, items: list[Node]) -> Iterable[Node]:
        """`x = 2 or x = 3` lists values of one variable; `x = 2, y = 3` assigns to two."""
        named = [self._named(item) for item in items]
        if len(items) > 1 and all(each is not None and each.name == named[0].name for each in named if named[0]):
            return [each.value for each in named if each is not None] if None not in named else items
        return items

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
        """A bare list against a tuple: assignments by their names' order, plain values as they stand."""
        listed, ordered = (items, others) if kind == "list" else (others, items)
        if kind == "one" or len(listed) != len(ordered):
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
        """Whether the items can be paired one to one. Equality being transitive, taking the first match is enough."""
        if len(items) != len(others):
            return False
        left = list(others)
        for item in items:
            for at, other in enumerate(left):
                if self.same(item, other):
                    del left[at]
                    break
            else:
                return False
        return True


def _spread(node: Node) -> Node:
    r"""`1 \pm 2` as the list of its two values; all signs of one answer go together, `\mp` against them."""
    if not isinstance(node, (Apply, Relation)) or not any(
        isinstance(each, Apply) and each.op in ("pm", "mp") for each in walk(node)
    ):
        return node
    if isinstance(node, Relation):
        sides = [_spread(side) for side in node.sides]
        return Relation(tuple(sides), node.ops)
    return Sequence("", (_signed(node, False), _signed(node, True)))


def _signed(node: Node, minus: bool) -> Node:
    if not isinstance(node, Apply):
        return node
    args = tuple(_signed(arg, minus) for arg in node.args)
    if node.op in ("pm", "mp"):
        return Apply("neg", args) if minus == (node.op == "pm") else args[0]
    return Apply(node.op, args)


def _measured(node: Node) -> bool:
    return _under("percent", node) is not None or _under("degree", node) is not None


def _under(op: str, node: Node) -> Node | None:
    """The value under a percent or degree sign, with a minus before it kept."""
    if isinstance(node, Apply) and node.op == op:
        return node.args[0]
    if isinstance(node, Apply) and node.op == "neg":
        below = _under(op, node.args[0])
        return Apply("neg", (below,)) if below is not None else None
    if isinstance(node, Apply) and node.op == "mul":
        below = _under(op, node.args[-1])
        return Apply("mul", (*node.args[:-1], below)) if below is not None else None
    return None


def _quantity(node: Node) -> tuple[Node, Unit | None]:
    if isinstance(node, Quantity):
        return node.value, node.unit
    if isinstance(node, Apply) and node.op == "neg" and isinstance(node.args[0], Quantity):
        return Apply("neg", (node.args[0].value,)), node.args[0].unit
    degrees = _under("degree", node)
    return (node, None) if degrees is None else (degrees, Unit(Fraction(1), _ANGLE))


def _times(factor: Fraction, value: Node) -> Node:
    return value if factor == 1 else Apply("mul", (Number(factor), value))


def _cross(a: Node, b: Node) -> Node:
    return Apply("mul", (a, b))


def _two_digit(ratio: Ratio) -> bool:
    """True where the second part is written as minutes are: two digits."""
    second = ratio.items[1]
    return isinstance(second, Number) and second.value.denominator == 1 and 10 <= second.value < 100


def _name_of(node: Node) -> str | None:
    """What a left-hand side names: a variable, a function's value, a segment, a sum or product of variables."""
    if isinstance(node, Symbol):
        return node.name
    if isinstance(node, Apply) and node.op.startswith("call "):
        return canonical(node)
    if isinstance(node, Sequence) and node.items and all(isinstance(item, Symbol) for item in node.items):
        return canonical(node)
    symbols = free_symbols(node)
    plain = all(isinstance(each, (Symbol, Apply)) for each in walk(node))
    named = plain and (len(symbols) > 1 or (len(symbols) == 1 and next(iter(symbols)).isupper()))
    return canonical(node) if named and isinstance(node, Apply) else None


def _in_name_order(names: Node, value: Node) -> Node:
    """`(y, x) = (2, 1)` as the value of `(x, y)`."""
    if not isinstance(names, Sequence) or not isinstance(value, Sequence) or len(names.items) != len(value.items):
        return value
    order = sorted(range(len(names.items)), key=lambda at: repr(names.items[at]))
    return Sequence(value.brackets, tuple(value.items[at] for at in order))


def _difference(node: Relation) -> tuple[Node | None, str]:
    """One-step relations as `difference op 0` with op among `=`, `<`, `<=`, `!=`; None for longer chains."""
    if len(node.ops) != 1 or not all(isinstance(side, Expression) for side in node.sides):
        return None, ""
    op, (left, right) = node.ops[0], node.sides
    if op in (">", ">="):
        op, left, right = "<" + op[1:], right, left
    if op not in ("=", "<", "<=", "!="):
        return None, ""
    return Apply("add", (left, Apply("neg", (right,)))), op


def _numerator(node: Node) -> Node:
    """A difference of two sides with their denominators multiplied out."""
    assert isinstance(node, Apply)
    left, negated = node.args
    assert isinstance(negated, Apply)
    right = negated.args[0]
    (above, below), (other, under) = _parts(left), _parts(right)
    return Apply("add", (_cross(above, under), Apply("neg", (_cross(other, below),))))


def _parts(node: Node) -> tuple[Node, Node]:
    if isinstance(node, Apply) and node.op == "div":
        return node.args[0], node.args[1]
    return node, Number(Fraction(1))


def _rows(node: Node) -> tuple[str, tuple[tuple[Node, ...], ...]] | None:
    if isinstance(node, Matrix):
        return node.kind, node.rows
    if not isinstance(node, Sequence) or node.brackets not in ("[]", "()", "<>") or not node.items:
        return None
    nested = [item.items for item in node.items if isinstance(item, Sequence) and item.brackets in ("[]", "()")]
    if len(nested) == len(node.items) and len({len(row) for row in nested}) == 1 and nested[0]:
        return "matrix", tuple(nested)
    return "tuple", (node.items,)
