"""The two kinds of arithmetic for approximate values: Python's floats, and numbers with a hundred digits."""

from __future__ import annotations

import cmath
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rewards.mathematics.comparing.rational import TooLarge

# Greatest natural logarithm of a computed value. A person would not write a larger answer.
_MAX_EXPONENT = {"float": 600.0, "precise": 1.0e5}
_MAX_ANGLE = {"float": 1e6, "precise": 1e30}
PRECISE_DIGITS = 100


class Arithmetic:
    """Numbers of one precision, and the functions on these numbers. The operators are Python's operators."""

    def __init__(self, name: str, library: Any, number: Callable[[Fraction], Any], cost: int) -> None:
        self.name, self.library, self.number, self.cost = name, library, number, cost
        self.exponent, self.angle = _MAX_EXPONENT[name], _MAX_ANGLE[name]
        self.pi, self.e = library.pi, library.e
        self.closeness = 1e-9 if name == "float" else 10.0 ** -(PRECISE_DIGITS - 20)


def _float(value: Fraction) -> complex:
    try:
        return complex(value)
    except OverflowError:
        raise TooLarge("beyond floats") from None


FLOATS = Arithmetic("float", cmath, _float, 20)


@functools.cache
def precise() -> Arithmetic:
    """The arithmetic of `PRECISE_DIGITS` digits; mpmath is imported at the first call."""
    from mpmath import MPContext  # type: ignore[import-untyped]  # mpmath has no types

    context = MPContext()
    context.dps = PRECISE_DIGITS

    def number(value: Fraction) -> Any:
        return context.mpc(context.mpf(value.numerator) / value.denominator)

    made = Arithmetic("precise", context, number, 2000)
    made.pi, made.e = +context.pi, +context.e
    return made
