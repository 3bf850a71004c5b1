"""Computes exact rational values of expressions. The cost is limited, and is estimated first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from rewards.mathematics.nodes import Apply, Node, Number, Symbol

# Greatest number of bits of an integer that is computed, and of all results together. 2^100000 is within this limit,
# 9^9^9^9 is not.
MAX_BITS = 1 << 18
MAX_WORK = 1 << 22


class Irrational(Exception):
    """The value is not rational, or no rule in this file shows that it is rational."""


class Undefined(Exception):
    """The expression has no value at this point, for example a division by zero, a factorial of -1 or a floor of i."""


class TooLarge(Exception):
    """The evaluation would cost too much."""


class Budget:
    """The work that a verdict may need.

    Every stage uses a part of the budget; when it is used up, `TooLarge` is raised.
    """

    __slots__ = ("left",)

    def __init__(self, work: int = MAX_WORK) -> None:
        self.left = work

    def spend(self, work: int) -> None:
        """Take `work` units from the budget. A unit is about 20 ns of computing time."""
        self.left -= work
        if self.left < 0:
            raise TooLarge("the verdict's budget is spent")


def exact(node: Node, env: Mapping[str, Fraction], budget: Budget) -> Fraction:
    """The exact value of `node`; `env` has the values of its variables.

    Raises:
        Irrational, Undefined, TooLarge: see these classes.
    """
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Symbol):
        try:
            return env[node.name]
        except KeyError:
            raise Irrational(node.name) from None
    if not isinstance(node, Apply):
        raise Irrational
    values = [exact(arg, env, budget) for arg in node.args]
    result = _apply(node.op, values)
    bits = result.numerator.bit_length() + result.denominator.bit_length()
    if bits > MAX_BITS:
        raise TooLarge(f"a number of {bits} bits")
    budget.spend(50 + bits)
    return result


def _apply(op: str, values: list[Fraction]) -> Fraction:
    first = values[0]
    if op == "add":
        return sum(values[1:], first)
    if op == "mul":
        result = first
        for value in values[1:]:
            result *= value
            if result.numerator.bit_length() + result.denominator.bit_length() > MAX_BITS:
                raise TooLarge("a product")
        return result
    if op == "neg":
        return -first
    if op == "div":
        if values[1] == 0:
            raise Undefined("division by zero")
        return first / values[1]
    if op == "pow":
        return power(first, values[1])
    if op == "root":
        if values[1].denominator != 1 or values[1] <= 0:
            raise Irrational
        return _root(first, int(values[1]))
    if op in ("factorial", "double_factorial", "binom"):
        return _count(op, values)
    if op == "gamma":
        # The gamma function of n is (n-1)!, and has no value at 0 and below.
        if first.denominator != 1:
            raise Irrational(op)
        return _count("factorial", [first - 1])
    if op == "abs":
        return abs(first)
    if op == "floor":
        return Fraction(math.floor(first))
    if op == "ceiling":
        return Fraction(math.ceil(first))
    if op in ("max", "min"):
        return max(values) if op == "max" else min(values)
    if op == "percent":
        return first / 100
    if op in ("gcd", "lcm", "mod"):
        return _integers(op, values)
    raise Irrational(op)


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """`base ** exponent` if it is rational; the size of the result is estimated first."""
    if exponent.denominator != 1:
        if exponent.denominator > 64:
            raise Irrational
        return power(_root(base, exponent.denominator), Fraction(exponent.numerator))
    if base == 0 and exponent < 0:
        raise Undefined("zero to a negative power")
    if base in (0, 1, -1):
        return base ** (int(exponent) % 2 if base == -1 else min(1, int(exponent))) if exponent else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS:
        raise TooLarge("a power")
    return Fraction(base ** int(exponent))


def _root(value: Fraction, index: int) -> Fraction:
    """The real root if it is rational; for negative values the index must be odd."""
    if value < 0:
        if index % 2 == 0:
            raise Irrational
        return -_root(-value, index)
    above, below = _integer_root(value.numerator, index), _integer_root(value.denominator, index)
    return Fraction(above, below)


def _integer_root(value: int, index: int) -> int:
    if index == 1 or value in (0, 1):
        return value
    if value.bit_length() > 4096 or index > 64:
        raise TooLarge("a root of a large number")
    if index == 2:
        root = math.isqrt(value)
    else:
        root = round(value ** (1.0 / index)) if value.bit_length() < 1000 else 0
        # The float is a first guess. From it, Newton's method with integers finds the exact root.
        for _ in range(64):
            if root <= 0:
                root = 1 << (value.bit_length() // index + 1)
            better = ((index - 1) * root + value // root ** (index - 1)) // index
            if abs(better - root) <= 1:
                root = better
                break
            root = better
        root = next((near for near in (root - 1, root, root + 1) if near**index == value), 0)
    if root**index != value:
        raise Irrational
    return root


def _count(op: str, values: list[Fraction]) -> Fraction:
    if any(value.denominator != 1 for value in values):
        raise Undefined(f"{op} of a number that is not whole")
    n = int(values[0])
    if op in ("factorial", "double_factorial"):
        if n < 0:
            raise Undefined("factorial of a negative number")
        if n > 5000:
            raise TooLarge("a factorial")
        return Fraction(math.factorial(n) if op == "factorial" else math.prod(range(n, 0, -2)))
    k = int(values[1])
    if k < 0 or n < 0:
        raise Undefined("binomial of a negative number")
    if min(k, n - k) > 2000 or n.bit_length() > 64:
        raise TooLarge("a binomial")
    return Fraction(math.comb(n, k))


def _integers(op: str, values: list[Fraction]) -> Fraction:
    if any(value.denominator != 1 for value in values):
        raise Undefined(f"{op} of numbers that are not whole")
    whole = [int(value) for value in values]
    if op == "mod":
        if whole[1] == 0:
            raise Undefined("mod 0")
        return Fraction(whole[0] % whole[1])
    return Fraction(math.gcd(*whole) if op == "gcd" else math.lcm(*whole))
