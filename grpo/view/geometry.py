"""Compute line and area charts as plain geometry. The page's script makes SVG from this geometry.

This module draws nothing. The style sheet sets the colours, so that a chart suits light and dark pages.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from grpo.report.metrics_log import Curve
from grpo.report.step_time import StepTime

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 462, 10, 194
# A line needs at most one point per pixel. So a longer line is divided into this many buckets, and only the lowest
# and the highest point of each bucket are kept.
_MAX_BUCKETS = 210
# Width of a digit in a label of the value axis, in units of the chart's box. A comma or a point is half as wide.
_DIGIT = 8.7
# Values that differ by less than this share of their size are nearly equal. If the axis magnified these values, noise
# would look like a change, and the labels would not fit beside the chart.
_NEARLY = 1e-4
# Differences of larger values overflow a float. Measured values are much smaller.
_LARGEST = 1e300
# Largest number of bars of a stack. With more bars the edges are mostly noise.
_MOST_BARS = 100


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its position in pixels, and its text."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class ChartShape:
    """A line or an area, which `points` describes. An area is closed.

    If single values of a line must be marked, `dots` has their positions. `is_faint` marks the unsmoothed line behind a
    smoothed line. Both lines have the same label.
    """

    label: str
    style: str
    points: str
    is_area: bool = False
    is_faint: bool = False
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart in a box of WIDTH by HEIGHT.

    Attributes:
        left: the pixel where the step axis begins; the labels of the value axis are left of this pixel.
        readout: numbers with which the page shows the values at the mouse pointer: the pixel of step 0, pixels per
            step, and each series as [label, [[step, value], ...]].
        summary: description of the chart in a sentence, for readers who cannot see the chart.
    """

    title: str
    unit: str
    shapes: tuple[ChartShape, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float
    readout: Mapping[str, object]
    summary: str


def line_chart(
    title: str,
    curves: Mapping[str, Curve],
    span: tuple[int, int],
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    dotted: Sequence[str] = (),
) -> Chart | None:
    """Draw a line for each curve that has a point; None if no curve has a point.

    Args:
        title: name of the measured quantity.
        curves: curves by label.
        span: first and last step of the step axis. Charts beside each other need the same span.
        unit: unit of the values.
        low: the value axis begins at `low`, or at the lowest value if this is lower; by default at the lowest value.
        high: the value axis ends at `high`, or at the highest value if this is higher; by default at the highest value.
        dotted: labels of curves with few points, which are marked.
    """
    drawn = {label: _drawable(curve) for label, curve in curves.items() if curve.finite()}
    if not drawn:
        return None
    values = [value for curve in drawn.values() for value in curve.values]
    ends = [end for end in (low, high) if end is not None]
    if high is None and low is not None and max(values) <= low:
        # If all values are at most `low`, the axis needs some length. The curve then lies on the step axis.
        ends.append(low + 1.0)
    up = _Axis.over(min(values + ends), max(values + ends), BOTTOM, TOP)
    y_ticks = up.ticks(5)
    across = _Axis.over(*span, _left(y_ticks), RIGHT, whole=True)
    shapes: list[ChartShape] = []
    for position, (label, curve) in enumerate(drawn.items(), start=1):
        few = label in dotted or len(curve.steps) == 1
        if curve.is_noisy() and not few:
            shapes.append(_line(label, f"s{position}", curve.smooth(), across, up))
            shapes.append(dataclasses.replace(_line(label, f"s{position}", curve, across, up), is_faint=True))
        else:
            shapes.append(_line(label, f"s{position}", curve, across, up, is_dotted=few))
    return Chart(
        title,
        unit,
        tuple(shapes),
        across.ticks(6),
        y_ticks,
        across.begin,
        _readout(across, drawn),
        "; ".join(_sentence(label, curve) for label, curve in drawn.items()),
    )


def step_time_chart(timed: StepTime) -> Chart:
    """Draw the time of each part of a step as stacked areas."""
    shares, longest = timed.shares(), max(timed.totals())
    top, is_cut = timed.top()
    readable = timed.thinned(2 * _MAX_BUCKETS)
    timed = timed.thinned(_MOST_BARS)
    edges = timed.edges()
    up = _Axis.over(0.0, top, BOTTOM, TOP)
    y_ticks = up.ticks(5)
    across = _Axis(edges[0], edges[-1], _left(y_ticks), RIGHT, whole=True)
    lower = [0.0] * len(timed.steps)
    shapes = []
    for part, seconds in timed.parts.items():
        upper = [low + more for low, more in zip(lower, seconds, strict=True)]
        outline = [*_stairs(edges, upper), *reversed(_stairs(edges, lower))]
        points = _points((across.pixel(x), max(TOP, up.pixel(y))) for x, y in outline)
        shapes.append(ChartShape(f"{part} {shares[part]:.0%}", f"part-{part}", points, is_area=True))
        lower = upper
    title = f"Step time (longest {longest:.1f} s)" if is_cut else "Step time"
    curves = {part: Curve(readable.steps, seconds) for part, seconds in readable.parts.items()}
    sentence = ", ".join(f"{part} {shares[part]:.0%}" for part in timed.parts)
    return Chart(
        title,
        "seconds",
        tuple(shapes),
        across.ticks(6),
        y_ticks,
        across.begin,
        _readout(across, curves),
        f"shares: {sentence}",
    )


def nice_ticks(low: float, high: float, count: int, *, whole: bool = False) -> tuple[float, ...]:
    """Return about `count` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    # Numbers that differ only by rounding are one number, whose neighbours have no round numbers in between.
    if high <= low or (not whole and high - low <= 1e-9 * max(abs(low), abs(high))):
        return (low,)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def number_label(value: float, step: float | None = None) -> str:
    """A number as a short, readable text: `0.25`, `12,000`, `1e-5`.

    Args:
        value: number to write.
        step: distance to the next label of the axis. The label gets enough digits to differ from the next label; if
            `step` is None, the label gets four digits.
    """
    if value == 0 or (step is not None and abs(value) < step / 1e3):
        return "0"
    size = math.floor(math.log10(abs(value)))
    digits = 4 if step is None else max(1, size - math.floor(math.log10(step) + 1e-9) + 1)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if -4 <= size < 6:
        mantissa, exponent = f"{value:,.{max(0, digits - 1 - size)}f}", "0"
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if int(exponent) else mantissa


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    begin: float
    end: float
    whole: bool = False

    @classmethod
    def over(cls, low: float, high: float, begin: float, end: float, *, whole: bool = False) -> _Axis:
        size, smallest = max(abs(low), abs(high)), 1 / _LARGEST
        if high - low <= (0.0 if whole else max(_NEARLY * size, smallest)):
            # Give the axis some length, so that the line is in the middle of the chart.
            middle, margin = low + (high - low) / 2, 0.0 if whole else 0.1 * size
            margin = margin if margin > smallest else 1.0
            low, high = middle - margin, middle + margin
        return cls(low, high, begin, end, whole)

    def pixel(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self, count: int) -> tuple[Tick, ...]:
        numbers = nice_ticks(self.low, self.high, count, whole=self.whole)
        step = numbers[1] - numbers[0] if len(numbers) > 1 else None
        return tuple(Tick(round(self.pixel(number), 1), number_label(number, step)) for number in numbers)


def _left(y_ticks: Sequence[Tick]) -> float:
    """The begin of the step axis: at LEFT, or further right if the chart has longer labels."""
    widths = [sum(_DIGIT / 2 if character in ".,-" else _DIGIT for character in tick.label) for tick in y_ticks]
    return max(LEFT, round(10 + max(widths, default=0.0)))


def _drawable(curve: Curve) -> Curve:
    finite = curve.finite()
    return Curve(finite.steps, tuple(min(max(value, -_LARGEST), _LARGEST) for value in finite.values))


def _line(label: str, style: str, curve: Curve, across: _Axis, up: _Axis, *, is_dotted: bool = False) -> ChartShape:
    thin = _thinned(curve)
    places = [
        (across.pixel(step), min(max(up.pixel(value), TOP), BOTTOM))
        for step, value in zip(thin.steps, thin.values, strict=True)
    ]
    dots = tuple((round(x, 1), round(y, 1)) for x, y in places) if is_dotted else ()
    return ChartShape(label, style, _points(places), dots=dots)


def _thinned(curve: Curve) -> Curve:
    # Keep the lowest and the highest point of each bucket, in their order, so that a single spike stays visible.
    if len(curve.steps) <= 2 * _MAX_BUCKETS:
        return curve
    kept: list[int] = []
    size = len(curve.steps) / _MAX_BUCKETS
    for bucket in range(_MAX_BUCKETS):
        members = range(round(bucket * size), round((bucket + 1) * size))
        extremes = {min(members, key=curve.values.__getitem__), max(members, key=curve.values.__getitem__)}
        kept += sorted(extremes)
    return Curve(tuple(curve.steps[at] for at in kept), tuple(curve.values[at] for at in kept))


def _stairs(edges: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    corners = []
    for begin, end, height in zip(edges, edges[1:], heights, strict=False):
        corners += [(begin, height), (end, height)]
    return corners


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _readout(across: _Axis, curves: Mapping[str, Curve]) -> dict[str, object]:
    return {
        "origin": round(across.pixel(0), 4),
        "scale": round(across.pixel(1) - across.pixel(0), 6),
        "series": [
            [label, [[step, float(f"{value:.6g}")] for step, value in zip(thin.steps, thin.values, strict=True)]]
            for label, thin in ((label, _thinned(curve)) for label, curve in curves.items())
        ],
    }


def _sentence(label: str, curve: Curve) -> str:
    first = f"{label} {number_label(curve.values[0])} at step {curve.steps[0]}"
    if len(curve.steps) == 1:
        return first
    return f"{first}, {number_label(curve.values[-1])} at step {curve.steps[-1]}"
