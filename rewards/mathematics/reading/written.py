r"""The precision of a written value: half a unit of the last digit of `8.7 \times 10^8` or `41.8^\circ`."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import Apply, Node, Number


def half_step(node: Node) -> Node | None:
    r"""Return half a unit of the last written digit; None if the value was written exactly.

    Decimals and numbers in scientific notation are rounded values, also if they have a minus or a percent or degree
    sign, and after a conversion of the unit. Integers, fractions and powers without digits before them (`10^6`) are
    exact.
    """
    if isinstance(node, Number):
        return _half(node) if node.decimals else None
    if not isinstance(node, Apply):
        return None
    if node.op in ("neg", "percent", "degree"):
        below = half_step(node.args[0])
        return None if below is None else Apply(node.op, (below,)) if node.op != "neg" else below
    if node.op == "div" and isinstance(node.args[1], Number):
        below = half_step(node.args[0])
        return Apply("div", (below, node.args[1])) if below is not None else None
    if node.op != "mul" or len(node.args) != 2:
        return None
    first, second = node.args
    if isinstance(first, Number) and first.decimals is not None and _is_power_of_ten(second):
        return Apply("mul", (_half(first), second))
    if isinstance(first, Number) and first.decimals is None:
        # The first factor comes from a conversion of the unit.
        below = half_step(second)
        return Apply("mul", (Number(abs(first.value)), below)) if below is not None else None
    return None


def _half(number: Number) -> Number:
    return Number(Fraction(1, 2 * 10 ** (number.decimals or 0)))


def _is_power_of_ten(node: Node) -> bool:
    if not isinstance(node, Apply) or node.op != "pow" or not isinstance(node.args[0], Number):
        return False
    exponent = node.args[1]
    if isinstance(exponent, Apply) and exponent.op == "neg":
        exponent = exponent.args[0]
    return node.args[0].value == 10 and isinstance(exponent, Number) and exponent.value.denominator == 1
