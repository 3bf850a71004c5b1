"""Compares approximate values.

Floats can only show a difference. If floats agree, numbers with a hundred digits decide.
"""

from __future__ import annotations

import threading
from typing import Any

from rewards.mathematics.comparing.arithmetics import FLOATS, Arithmetic, precise
from rewards.mathematics.comparing.evaluate import PointEvaluation, Sight
from rewards.mathematics.comparing.rational import TooLarge
from rewards.mathematics.nodes import Apply, Node

# Greatest exponent of e that is computed. Up to this exponent, a computation with 100 digits gets the first digits of
# the result right.
_MAX_MAGNITUDE = 1e5
# mpmath caches its constants, and two threads must not refresh the cache at once.
_precise_lock = threading.RLock()


def compare(gold: Node, answer: Node, sight: Sight) -> tuple[bool, int]:
    """Return whether both nodes have the same value at the point, and how many of the two values are real.

    Raises:
        Undefined: a node has no value at the point.
        TooLarge: the budget does not suffice.
    """
    for arithmetic in (FLOATS, None):
        if arithmetic is None:
            with _precise_lock:
                return _compare_in(precise(), gold, answer, sight)
        try:
            same, real = _compare_in(arithmetic, gold, answer, sight)
        except TooLarge:
            if sight.budget.left < 0:
                raise
            continue
        if not same:
            return False, real
    raise AssertionError("both arithmetics were tried")


def magnitudes_differ(gold: Node, answer: Node, sight: Sight) -> bool:
    """True when the logarithms of two positive values clearly differ. This is for values that are too large to compute.

    Raises:
        Undefined, TooLarge: see `compare`.
    """
    with _precise_lock:
        evaluation = PointEvaluation(precise(), sight)
        left, right = (_magnitude(node, evaluation) for node in (gold, answer))
        if left is None or right is None:
            return False
        return bool(abs(left - right) > 1e-60 * max(abs(left), abs(right)))


def _magnitude(node: Node, evaluation: PointEvaluation) -> Any:
    """The natural logarithm of a product, power or factorial of values of 1 or more; None for other nodes."""
    if isinstance(node, Apply) and node.op in ("mul", "pow"):
        parts = [_magnitude(arg, evaluation) for arg in node.args]
        if any(part is None for part in parts):
            return None
        if node.op == "mul":
            return sum(parts[1:], parts[0])
        if parts[1] > _MAX_MAGNITUDE:
            raise TooLarge("a power")
        return parts[0] * evaluation.arithmetic.library.exp(parts[1])
    if isinstance(node, Apply) and node.op == "factorial":
        below = _magnitude(node.args[0], evaluation)
        if below is None or below > _MAX_MAGNITUDE:
            return None
        return evaluation.arithmetic.library.loggamma(1 + evaluation.arithmetic.library.exp(below)).real
    value = evaluation.value(node)
    if value.imag != 0 or value.real < 1:
        return None
    return evaluation.arithmetic.library.log(value.real)


def _compare_in(arithmetic: Arithmetic, gold: Node, answer: Node, sight: Sight) -> tuple[bool, int]:
    left, right = PointEvaluation(arithmetic, sight), PointEvaluation(arithmetic, sight)
    a, b = left.value(gold), right.value(answer)
    tolerance = arithmetic.closeness * max(left.loss, right.loss)
    same = bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))
    return same, sum(bool(abs(value.imag) <= 1e-6 * abs(value)) for value in (a, b))
