"""Computes the approximate value of an expression at a point."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rewards.mathematics.comparing.arithmetics import Arithmetic
from rewards.mathematics.comparing.rational import Budget, TooLarge, Undefined, exact
from rewards.mathematics.nodes import Apply, Bound, Constant, Node, Number, Symbol, rename

# A value of the zeta function to a hundred digits takes about two milliseconds.
_SPECIAL_COST = 100_000


@dataclass(frozen=True, slots=True)
class Sight:
    """The point and the conventions of an evaluation.

    `env` is the point: the values of the variables. `log_base` is the base of a logarithm without a written base. If
    `real_roots` is true, a power of a negative number is real if the exponent has an odd denominator: (-8)^{1/3} is -2.
    """

    env: Mapping[str, Fraction]
    budget: Budget
    log_base: int = 10
    real_roots: bool = False


class PointEvaluation:
    """One evaluation at one point.

    `loss` is the factor by which cancelling terms may have increased the relative error. If the terms of a sum cancel
    and only rounding noise is left, the sum is zero with a hundred digits, but undecided with floats.
    """

    def __init__(self, arithmetic: Arithmetic, sight: Sight) -> None:
        self.arithmetic, self.env, self.budget, self.log_base = arithmetic, sight.env, sight.budget, sight.log_base
        self.real_roots = sight.real_roots
        self.loss = 1.0

    def value(self, node: Node) -> Any:
        """The value, a complex number of this arithmetic.

        Raises:
            Undefined: the node has no value at the point.
            TooLarge: the value costs too much.
        """
        try:
            result = self._value(node)
        except (ZeroDivisionError, ValueError) as problem:
            raise Undefined(str(problem)) from None
        except OverflowError:
            raise TooLarge("beyond this precision") from None
        magnitude = abs(result)
        finite = math.isfinite if self.arithmetic.name == "float" else self.arithmetic.library.isfinite
        if not finite(magnitude):
            raise TooLarge("beyond this precision")
        return result

    def _value(self, node: Node) -> Any:
        self.budget.spend(self.arithmetic.cost)
        if isinstance(node, Number):
            return self.arithmetic.number(node.value)
        if isinstance(node, Symbol):
            return self.arithmetic.number(self.env[node.name] if node.name in self.env else _stand_in(node))
        if isinstance(node, Constant):
            return self._constant(node.name)
        if isinstance(node, Bound):
            return self.arithmetic.number(_stand_in(node))
        if not isinstance(node, Apply):
            raise Undefined("not an expression")
        if node.op.startswith("call "):
            return self.arithmetic.number(_stand_in(node))
        values = [self._value(arg) for arg in node.args]
        if self.real_roots and node.op == "pow" and values[0].imag == 0 and values[0].real < 0:
            exponent = _odd_fraction(node.args[1])
            if exponent is not None:
                root = self._power(-values[0], values[1])
                return root if exponent.numerator % 2 == 0 else -root
        return self._apply(node.op, values)

    def _constant(self, name: str) -> Any:
        if name == "pi":
            return self.arithmetic.pi * (1 + 0j)
        if name == "e":
            return self.arithmetic.e * (1 + 0j)
        if name == "i":
            return self.arithmetic.number(Fraction(0)) + 1j
        raise Undefined(name)

    def _apply(self, op: str, values: list[Any]) -> Any:
        first = values[0]
        if op == "add":
            return self._sum(values)
        if op == "mul":
            return functools.reduce(lambda a, b: a * b, values)
        if op == "neg":
            return -first + 0  # + 0 avoids negative zeros: sqrt(-4 - 0i) would be -2i
        if op == "div":
            return first / values[1] + 0
        if op == "pow":
            return self._power(first, values[1])
        if op == "root":
            return self._root(first, values[1])
        if op == "log":
            if len(values) == 1 and self.log_base == 0:
                return self._log(first)
            base = values[1] if len(values) > 1 else self.arithmetic.number(Fraction(self.log_base))
            return self._log(first) / self._log(base)
        if op == "ln":
            return self._log(first)
        if op == "percent":
            return first / 100
        if op == "degree":
            return first * self.arithmetic.pi / 180
        if op in TRIGONOMETRY:
            return self._trigonometry(op, first)
        if op == "abs":
            return abs(first) * (1 + 0j)
        if op in ("gamma", "zeta"):
            return self._special(op, first)
        return self._real_function(op, [self._real(value) for value in values])

    def _special(self, op: str, value: Any) -> Any:
        """The gamma or zeta function of a real number.

        Only the arithmetic with a hundred digits has these functions.
        """
        if self.arithmetic.name == "float":
            raise TooLarge("floats do not know this function")
        if value.imag != 0 or abs(value.real) > 100 or (op == "zeta" and value.real < 1.5):
            raise TooLarge(f"{op} of this number")
        self.budget.spend(_SPECIAL_COST)
        return (self.arithmetic.library.gamma if op == "gamma" else self.arithmetic.library.zeta)(value)

    def _sum(self, values: list[Any]) -> Any:
        result = sum(values[1:], values[0])
        largest, magnitude = max(abs(value) for value in values), abs(result)
        if magnitude <= self.arithmetic.closeness * largest:
            return self._noise() if largest else result
        loss = float(largest / magnitude)
        if loss > 10:
            self.loss *= loss
            if self.loss * self.arithmetic.closeness > 1e-3:
                raise TooLarge("terms cancel beyond this precision")
        return result

    def _noise(self) -> Any:
        """Return the value for a result that is only rounding noise."""
        if self.arithmetic.name == "float":
            raise TooLarge("zero or nearly zero: floats cannot decide")
        return self.arithmetic.number(Fraction(0))

    def _real(self, value: Any) -> Any:
        if abs(value.imag) > self.arithmetic.closeness * max(1.0, abs(value.real)):
            raise Undefined("a complex number instead of a real number")
        return value.real

    def _real_function(self, op: str, values: list[Any]) -> Any:
        if op in ("floor", "ceiling"):
            floats = self.arithmetic.name == "float"
            nearest = round(float(values[0])) if floats else self.arithmetic.library.nint(values[0])
            near = abs(values[0] - nearest) <= self.arithmetic.closeness * max(1.0, abs(values[0]))
            library = math if floats else self.arithmetic.library
            rounding = library.floor if op == "floor" else library.ceil
            return (nearest if near else rounding(values[0])) * (1 + 0j)
        if op in ("max", "min"):
            return (max(values) if op == "max" else min(values)) * (1 + 0j)
        if op not in _WHOLE_NUMBERS:
            raise Undefined(f"{op} of numbers")
        whole = [Fraction(round(float(value))) for value in values]
        if any(abs(float(value) - int(near)) > 1e-9 for value, near in zip(values, whole, strict=True)):
            raise Undefined(f"{op} of a number that is not whole")
        return self.arithmetic.number(exact(Apply(op, tuple(Number(value) for value in whole)), {}, self.budget))

    def _power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if exponent.real <= 0 and exponent != 0:
                raise Undefined("zero to a negative power")
            return base * 0 + (1 if exponent == 0 else 0)
        growth = abs(exponent) * (abs(math.log(float(abs(base)))) + 4 * (base.imag != 0 or base.real < 0))
        if not growth < self.arithmetic.exponent:
            raise TooLarge("a power")
        if exponent.imag == 0 and exponent.real == int(exponent.real) and abs(exponent.real) < 10000:
            return base ** int(exponent.real)
        return base**exponent

    def _root(self, value: Any, index: Any) -> Any:
        if index.imag != 0 or index.real == 0 or abs(index.real) > 1000:
            raise Undefined("a root of that index")
        odd = index.real == int(index.real) and int(index.real) % 2 == 1
        if odd and value.imag == 0 and value.real < 0:
            return -self._power(-value, 1 / index)
        if index == 2:
            return self.arithmetic.library.sqrt(value)
        return self._power(value, 1 / index)

    def _log(self, value: Any) -> Any:
        if value == 0:
            raise Undefined("the logarithm of zero")
        result = self.arithmetic.library.log(value)
        return result if abs(result) > self.arithmetic.closeness or value == 1 else self._noise()

    def _trigonometry(self, op: str, value: Any) -> Any:
        grows = op.endswith("h") and not op.startswith("arc")
        limit = self.arithmetic.exponent if grows else self.arithmetic.angle
        if abs(value) > limit or abs(value.imag) > self.arithmetic.exponent:
            raise TooLarge(f"{op} of so large a number")
        library = self.arithmetic.library
        name, inverse = TRIGONOMETRY[op]
        if op in ("arcsec", "arccsc"):
            value = 1 / value
        if self.arithmetic.name == "float" or not op.startswith("arc"):
            if op == "arccot":
                return library.pi / 2 - self._trigonometry("arctan", value)
            result = getattr(library, name)(value)
        else:
            result = library.pi / 2 - library.atan(value) if op == "arccot" else getattr(library, name)(value)
        if name in ("tan", "tanh") and abs(result) * self.arithmetic.closeness > 1:
            raise Undefined("a pole")
        if abs(result) <= self.arithmetic.closeness * max(1.0, abs(value)) and value != 0:
            result = self._noise()
        return 1 / result if inverse else result


_WHOLE_NUMBERS = frozenset(("factorial", "double_factorial", "binom", "gcd", "lcm", "mod"))
# For each operation: the name of the library's function, and whether the result is the reciprocal of this function. The
# table is fixed, so that a name from an answer is never looked up in the library.
TRIGONOMETRY: Mapping[str, tuple[str, bool]] = {
    "sin": ("sin", False), "cos": ("cos", False), "tan": ("tan", False), "cot": ("tan", True), "sec": ("cos", True),
    "csc": ("sin", True), "arcsin": ("asin", False), "arccos": ("acos", False), "arctan": ("atan", False),
    "arccot": ("atan", False), "sinh": ("sinh", False), "cosh": ("cosh", False), "tanh": ("tanh", False),
    "coth": ("tanh", True), "arcsinh": ("asinh", False), "arccosh": ("acosh", False), "arctanh": ("atanh", False),
    "arcsec": ("acos", False), "arccsc": ("asin", False),
}  # fmt: skip


def canonical(node: Node, depth: int = 0) -> str:
    """Return a text for a tree. Trees that differ only in the names of bound variables have the same text."""
    if isinstance(node, Bound):
        renamed = Symbol(f"bound {depth}")
        body = canonical(rename(node.body, {node.variable: renamed}), depth + 1)
        return f"{node.op}({','.join(canonical(limit, depth) for limit in node.limits)};{body})"
    if isinstance(node, Apply):
        parts = [canonical(arg, depth) for arg in node.args]
        return f"{node.op}({','.join(sorted(parts) if node.op in ('add', 'mul') else parts)})"
    if isinstance(node, Number):
        return str(node.value)
    return repr(node)


def _stand_in(node: Node) -> Fraction:
    """A number in place of a node that is not evaluated.

    Equal trees get equal numbers, other trees get different numbers.
    """
    digest = hashlib.blake2b(canonical(node).encode("utf-8", "replace"), digest_size=8).digest()
    return Fraction(int.from_bytes(digest, "big") | 1, 1 << 63)


def has_odd_root(node: Node) -> bool:
    """True when a power has a fraction with an odd denominator as its exponent."""
    pending = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, Apply):
            if each.op == "pow" and _odd_fraction(each.args[1]) is not None:
                return True
            pending.extend(each.args)
    return False


def _odd_fraction(node: Node) -> Fraction | None:
    """The value of an exponent such as `2/3` or `-1/5`; None for whole numbers, even denominators and other nodes."""
    sign = 1
    if isinstance(node, Apply) and node.op == "neg":
        sign, node = -1, node.args[0]
    if isinstance(node, Number):
        value = node.value
    elif isinstance(node, Apply) and node.op == "div" and all(isinstance(arg, Number) for arg in node.args):
        above, below = (arg.value for arg in node.args if isinstance(arg, Number))
        if below == 0:
            return None
        value = above / below
    else:
        return None
    return sign * value if value.denominator % 2 == 1 and value.denominator > 1 else None
