"""Compares expressions by exact values, then by approximate values."""

from __future__ import annotations

from fractions import Fraction

from rewards import stage
from rewards.mathematics.comparing.approximate import compare, magnitudes_differ
from rewards.mathematics.comparing.arithmetics import FLOATS
from rewards.mathematics.comparing.evaluate import PointEvaluation, Sight, canonical, has_odd_root
from rewards.mathematics.comparing.magnitude import is_huge
from rewards.mathematics.comparing.rational import Budget, Irrational, TooLarge, Undefined, exact
from rewards.mathematics.comparing.regions import infinite
from rewards.mathematics.conventions import Conventions
from rewards.mathematics.nodes import Apply, Bound, Expression, Node, Number, Symbol, free_symbols, rename, walk
from rewards.mathematics.reading.written import half_step

# Values for free variables: even and odd whole numbers (for factorials and (-1)^n), fractions below and above 1, and
# negative numbers (because |x| differs from x). The result can only be wrong if the difference is zero at every point.
_WHOLE = ((8, 5, 11, 14, 3, 17, 6, 9), (5, 12, 3, 7, 10, 4, 15, 2))
_FRACTIONS = (
    tuple(Fraction(n, 97) for n in (223, 61, 349, 151, 83, 419, 197, 29)),
    tuple(Fraction(-n, 89) for n in (151, 307, 71, 211, 53, 367, 113, 31)),
    tuple(Fraction(n, 101) for n in (67, 401, 139, 53, 251, 89, 307, 179)),
)
POINTS: tuple[tuple[Fraction, ...], ...] = (*(tuple(map(Fraction, row)) for row in _WHOLE), *_FRACTIONS)
_NEGATIVE_POINT = 3
_OF_SETS = frozenset(("union", "intersection", "difference"))
MAX_SYMBOLS = 24


class ValueJudge:
    """Compares values. Its subclasses compare quantities, relations and collections."""

    def __init__(self, conventions: Conventions, budget: Budget) -> None:
        self.conventions, self.budget, self.stage = conventions, budget, "structure"
        self.real_roots = False

    def at(self, name: str) -> None:
        """Record the stage, which the reason of a timeout names."""
        if name != self.stage:
            self.stage = name
            stage.enter(name)

    def same(self, gold: Node, answer: Node) -> bool:
        """Compare two nodes by their form. A subclass implements this."""
        raise NotImplementedError

    def _same_measure(self, gold: Node, answer: Node) -> bool:
        raise NotImplementedError

    def _same_region(self, gold: Node, answer: Node) -> bool:
        raise NotImplementedError

    def _matched(self, items: tuple[Node, ...], others: tuple[Node, ...]) -> bool:
        raise NotImplementedError

    def _same_value(self, gold: Node, answer: Node) -> bool:
        if measured(gold) or measured(answer):
            return self._same_measure(gold, answer)
        sign, other = infinite(gold), infinite(answer)
        if sign or other:
            return sign == other
        if is_set(gold) or is_set(answer):
            return self._same_sets(gold, answer)
        if self.conventions.bare_base and isinstance(gold, Number) and isinstance(answer, Number):
            return gold.value == answer.value or (answer.bare is None and answer.value == gold.bare)
        return self._equal_values(gold, answer)

    def _same_sets(self, gold: Node, answer: Node) -> bool:
        """Compare unions and other operations on sets.

        A node without a region, such as an expression, does not equal a set.
        """
        if self._same_region(gold, answer):
            return True
        if not isinstance(gold, Apply) or not isinstance(answer, Apply) or gold.op != answer.op:
            return False
        if canonical(gold) == canonical(answer):
            return True
        return gold.op != "difference" and self._matched(gold.args, answer.args)

    def _equal_values(self, gold: Node, answer: Node) -> bool:
        """Whether two expressions have the same value at all points, or the answer rounds to a rounded gold answer.

        If they differ, they are compared again with fractional powers of negative numbers read as real numbers. Then
        (x-2)^{1/3} is the cube root of x-2 also for x below 2.
        """
        if self.conventions.rounded and (half := half_step(gold)) is not None:
            return self._rounds_to(gold, half, answer)
        if self._equal_somewhere(gold, answer):
            return True
        if self.real_roots or not (has_odd_root(gold) or has_odd_root(answer)):
            return False
        self.real_roots = True
        try:
            return self._equal_somewhere(gold, answer)
        finally:
            self.real_roots = False

    def _equal_somewhere(self, gold: Node, answer: Node) -> bool:
        names = sorted(free_symbols(gold) | free_symbols(answer))
        if not names:
            return self._equal_at(gold, answer, {}, real_only=False) is True
        if len(names) > MAX_SYMBOLS:
            raise TooLarge(f"{len(names)} variables")
        decided = 0
        for number, row in enumerate(POINTS):
            env = {name: Fraction(row[at % 8] + at // 8) for at, name in enumerate(names)}
            verdict = self._equal_at(gold, answer, env, real_only=number == _NEGATIVE_POINT)
            if verdict is False:
                return False
            decided += verdict is True
        if not decided:
            if canonical(gold) == canonical(answer):
                return True
            if self._has_a_value(gold, names) and not self._has_a_value(answer, names):
                return False  # an answer such as 0/0 is wrong, not undecided
            raise TooLarge("no point at which both have a value")
        return True

    def _has_a_value(self, node: Node, names: list[str]) -> bool:
        for row in POINTS:
            env = {name: Fraction(row[at % 8] + at // 8) for at, name in enumerate(names)}
            try:
                exact(node, env, self.budget)
            except Irrational:
                return True
            except Undefined:
                continue
            return True
        return False

    def _equal_at(self, gold: Node, answer: Node, env: dict[str, Fraction], real_only: bool) -> bool | None:
        """Return whether the values are equal at one point; None if the point does not decide.

        If `real_only` is true, complex values do not decide: ln(x^2) = 2 ln x only has to hold where both sides are
        real. But an absolute value is meant for negative values too. So ln|x| differs from ln x, because for negative x
        the first is real and the second is not.
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
            same, real = compare(gold, answer, self._sight(env))
        except Undefined:
            return None if env else False
        if real_only and real < 2:
            return False if real == 1 and (_has_absolute(gold) or _has_absolute(answer)) else None
        return same

    def _large(self, gold: Node, answer: Node, env: dict[str, Fraction]) -> bool | None:
        """Compare values that are too large for exact values.

        A clear difference decides, but agreement to a hundred digits does not.
        """
        self.at("approximate values")
        if canonical(gold) == canonical(answer):
            return True
        try:
            same, _ = compare(gold, answer, self._sight(env))
        except Undefined:
            return None
        except TooLarge:
            # If only one of the two values is huge, they differ.
            for tower, other in ((answer, gold), (gold, answer)):
                if is_huge(tower, env) and self._is_plain(other, env):
                    return False
            if magnitudes_differ(gold, answer, self._sight(env)):
                return False
            raise
        if same and not env:
            raise TooLarge("equal to a hundred digits, but too large for an exact comparison")
        return same

    def _rounds_to(self, gold: Node, half: Node, answer: Node) -> bool:
        """Whether `answer` is within half a unit of the gold answer's last digit."""
        if free_symbols(answer):
            return False
        try:
            distance = abs(exact(answer, {}, self.budget) - exact(gold, {}, self.budget))
            return distance <= abs(exact(half, {}, self.budget))
        except (Irrational, Undefined):
            places = [self.place(each) for each in (answer, gold, half)]
        if places[0] is None or places[1] is None or places[2] is None:
            return False
        return abs(places[0] - places[1]) <= abs(places[2]) * (1 + 1e-12)

    def _is_plain(self, node: Node, env: dict[str, Fraction]) -> bool:
        """True when floats can represent the value."""
        try:
            PointEvaluation(FLOATS, self._sight(env)).value(node)
        except (Undefined, TooLarge):
            return False
        return True

    def _sight(self, env: dict[str, Fraction]) -> Sight:
        return Sight(env, self.budget, self.conventions.log_base, self.real_roots)

    def place(self, node: Node) -> float | None:
        """The value of a real constant as a float; None for other nodes."""
        if not isinstance(node, Expression) or free_symbols(node):
            return None
        try:
            value = PointEvaluation(FLOATS, self._sight({})).value(node)
        except (Undefined, TooLarge):
            return None
        return float(value.real) if abs(value.imag) < 1e-9 * max(1.0, abs(value)) else None

    def _same_bound(self, gold: Node, answer: Node) -> bool:
        """Whether two sums, integrals or set builders have the same limits and the same body.

        For this comparison, both get the same bound variable.
        """
        if not isinstance(gold, Bound) or not isinstance(answer, Bound):
            return self._same_region(gold, answer)
        if gold.op != answer.op or len(gold.limits) != len(answer.limits):
            return self._same_region(gold, answer)
        if not all(self.same(a, b) for a, b in zip(gold.limits, answer.limits, strict=True)):
            return False
        shared = Symbol("bound")
        bodies = (rename(each.body, {each.variable: shared}) for each in (gold, answer))
        return self.same(*bodies)


def is_set(node: Node) -> bool:
    return isinstance(node, Apply) and node.op in _OF_SETS


def _has_absolute(node: Node) -> bool:
    return any(isinstance(each, Apply) and each.op == "abs" for each in walk(node))


def measured(node: Node) -> bool:
    return under("percent", node) is not None or under("degree", node) is not None


def under(op: str, node: Node) -> Node | None:
    """Return a value without its percent or degree sign, but with its minus; None for a value without such a sign."""
    if isinstance(node, Apply) and node.op == op:
        return node.args[0]
    if isinstance(node, Apply) and node.op == "neg":
        below = under(op, node.args[0])
        return Apply("neg", (below,)) if below is not None else None
    if isinstance(node, Apply) and node.op == "mul":
        below = under(op, node.args[-1])
        return Apply("mul", (*node.args[:-1], below)) if below is not None else None
    return None


def times(factor: Fraction, value: Node) -> Node:
    return value if factor == 1 else Apply("mul", (Number(factor), value))


def cross(a: Node, b: Node) -> Node:
    return Apply("mul", (a, b))
