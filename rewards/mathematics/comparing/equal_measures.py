"""Compares quantities with units, percents, angles, ratios and times of day."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.comparing.equal_values import ValueJudge, cross, measured, times, under
from rewards.mathematics.nodes import Apply, Constant, Expression, Node, Number, Quantity, RatioNode, Unit, walk

_HUNDRED = Number(Fraction(100))
_ANGLE = (("angle", 1),)


class MeasureJudge(ValueJudge):
    """Adds quantities with units to the comparison of values."""

    def _same_measure(self, gold: Node, answer: Node) -> bool:
        gold_percent, answer_percent = under("percent", gold), under("percent", answer)
        if gold_percent is not None or answer_percent is not None:
            return self._same_percent(gold, gold_percent, answer, answer_percent)
        if isinstance(gold, RatioNode) or isinstance(answer, RatioNode):
            return self._same_ratio(gold, answer)
        (value, unit), (other, other_unit) = _quantity(gold), _quantity(answer)
        if not isinstance(value, Expression) or not isinstance(other, Expression):
            return False
        if self.conventions.units == "ignore":
            return self._equal_values(value, other)
        if unit is not None and other_unit is not None:
            if unit.dimensions != other_unit.dimensions:
                return False
            return self._equal_values(times(unit.factor, value), times(other_unit.factor, other))
        if self.conventions.units == "strict":
            return False
        if self._equal_values(value, other):
            return True
        # If one side is an angle in degrees, a number on the other side is in radians only if it contains pi or an arc
        # function.
        angle, bare = (gold, answer) if unit is not None else (answer, gold)
        if (unit or other_unit) != Unit(Fraction(1), _ANGLE) or not _in_radians(bare):
            return False
        return self._equal_values(angle, bare)

    def _same_percent(self, gold: Node, gold_percent: Node | None, answer: Node, answer_percent: Node | None) -> bool:
        if gold_percent is not None and answer_percent is not None:
            return self._equal_values(gold_percent, answer_percent)
        if self.conventions.percent == "strict":
            return False
        percent, bare = (gold_percent, answer) if gold_percent is not None else (answer_percent, gold)
        assert percent is not None
        if not isinstance(bare, Expression) or measured(bare):
            return False
        if self._equal_values(Apply("div", (percent, _HUNDRED)), bare):
            return True
        return self.conventions.percent == "either" and self._equal_values(percent, bare)

    def _same_ratio(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, RatioNode) and isinstance(answer, RatioNode):
            if gold.exact_clock and answer.exact_clock:
                return gold.clock == answer.clock
            if gold.exact_clock or answer.exact_clock or (gold.clock is not None and answer.clock is not None):
                return answer.clock == gold.clock or self._half_day(gold, answer)
            if gold.clock is not None and _two_digit(answer):
                return False
            return len(gold.items) == len(answer.items) and all(
                self._equal_values(cross(a, answer.items[0]), cross(b, gold.items[0]))
                for a, b in zip(gold.items[1:], answer.items[1:], strict=True)
            )
        ratio, other = (gold, answer) if isinstance(gold, RatioNode) else (answer, gold)
        assert isinstance(ratio, RatioNode)
        if ratio.exact_clock and len(ratio.items) == 1 and isinstance(other, Expression):
            return self._equal_values(ratio.items[0], other)  # "6" for "6 p.m."
        if ratio.clock is not None or len(ratio.items) != 2 or not isinstance(other, Expression):
            return False
        return self._equal_values(Apply("div", ratio.items), other)

    def _half_day(self, gold: RatioNode, answer: RatioNode) -> bool:
        """Whether one side lacks a.m. or p.m. (`3:30` for `3:30 p.m.`), which may be missing like a unit."""
        if gold.exact_clock == answer.exact_clock or gold.clock is None or answer.clock is None:
            return False
        bare = answer if gold.exact_clock else gold
        return 3600 <= (bare.clock or 0) < 13 * 3600 and (gold.clock - answer.clock) % (12 * 3600) == 0


def _quantity(node: Node) -> tuple[Node, Unit | None]:
    if isinstance(node, Quantity):
        return node.value, node.unit
    if isinstance(node, Apply) and node.op == "neg" and isinstance(node.args[0], Quantity):
        return Apply("neg", (node.args[0].value,)), node.args[0].unit
    degrees = under("degree", node)
    return (node, None) if degrees is None else (degrees, Unit(Fraction(1), _ANGLE))


def _in_radians(node: Node) -> bool:
    return any(
        each == Constant("pi") or (isinstance(each, Apply) and each.op.startswith("arc") and not each.op.endswith("h"))
        for each in walk(node)
    )


def _two_digit(ratio: RatioNode) -> bool:
    """True when the second part has two digits, like minutes."""
    second = ratio.items[1]
    return isinstance(second, Number) and second.value.denominator == 1 and 10 <= second.value < 100
