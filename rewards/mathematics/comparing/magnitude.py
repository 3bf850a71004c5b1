"""Lower bounds of towers of powers and factorials, without evaluating them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from rewards.mathematics.nodes import Apply, Node, Number, Symbol

_HUGE = math.log(10) * 500
_LARGEST_EXPONENT = 700.0


def is_huge(node: Node, env: Mapping[str, Fraction]) -> bool:
    """True when the absolute value is certainly above 10^500; `env` has the values of the variables."""
    while isinstance(node, Apply) and node.op == "neg":
        node = node.args[0]
    least = _least_logarithm(node, env)
    return least is not None and least >= _HUGE


def _least_logarithm(node: Node, env: Mapping[str, Fraction]) -> float | None:
    """Return a lower bound of the natural logarithm of a value that is certainly at least 1; None for other values.

    Every node is visited once, and every bound is a float, so that a high tower takes little time.
    """
    if isinstance(node, (Number, Symbol)):
        value = node.value if isinstance(node, Number) else env.get(node.name, Fraction(0))
        return _of_rational(value) if value >= 1 else None
    if not isinstance(node, Apply):
        return None
    below = [_least_logarithm(arg, env) for arg in node.args]
    bounds = [each for each in below if each is not None]
    if len(bounds) != len(below):
        return None
    if node.op == "mul":
        return sum(bounds)
    if node.op == "add":
        return max(bounds)
    if node.op == "pow":
        # ln(base^exponent) is ln(base) times the exponent, and `bounds[1]` bounds the exponent's logarithm.
        return bounds[0] * math.exp(min(bounds[1], _LARGEST_EXPONENT))
    if node.op == "factorial":
        # ln n! is at least n ln n - n.
        n = math.exp(min(bounds[0], _LARGEST_EXPONENT))
        return max(0.0, n * math.log(n) - n)
    return None


def _of_rational(value: Fraction) -> float:
    """A lower bound of ln(value) for a value of 1 or more, from the lengths of its two integers."""
    if value.numerator < 2**1000 and value.denominator < 2**1000:
        return math.log(value.numerator / value.denominator)
    return max(0.0, (value.numerator.bit_length() - 1 - value.denominator.bit_length()) * math.log(2))
