"""Subsets of the real line: intervals, their unions, and the inequalities that describe them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from rewards.mathematics.nodes import Apply, Bound, Constant, Expression, Node, Relation, Sequence, Symbol, free_symbols

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}
_INFINITY = Constant("infinity")
_MINUS_INFINITY = Apply("neg", (Constant("infinity"),))


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`; each end may be included or not.

    The positions are floats and are used only for ordering.
    """

    low: Node
    high: Node
    low_in: bool
    high_in: bool
    low_at: float
    high_at: float


@dataclass(frozen=True, slots=True)
class Region:
    """A union of disjoint intervals in order. `variable` is the variable of an inequality, else empty."""

    variable: str
    intervals: tuple[Interval, ...]


Locate = Callable[[Node], float | None]


def infinite(node: Node) -> int:
    """1 for infinity, -1 for minus infinity, 0 otherwise."""
    if node == _INFINITY:
        return 1
    if isinstance(node, Apply) and node.op == "neg":
        return -infinite(node.args[0])
    if isinstance(node, Apply) and node.op == "add" and len(node.args) == 1:
        return infinite(node.args[0])
    return 0


def as_region(node: Node, locate: Locate) -> Region | None:
    """The region of a relation, an interval, a union or a set builder; None for other nodes.

    `locate` returns the place of an end point on the line; None if the end point is not a real constant.
    """
    if isinstance(node, Sequence):
        return _from_sequence(node, locate)
    if isinstance(node, Apply) and node.op in ("union", "intersection"):
        return _joined([as_region(arg, locate) for arg in node.args], node.op == "union")
    if isinstance(node, Apply) and node.op == "difference":
        whole, removed = (as_region(arg, locate) for arg in node.args)
        return _joined([whole, _complement(removed)], False) if removed is not None else None
    if isinstance(node, Bound) and node.op == "set":
        region = as_region(node.body, locate)
        if region is not None and region.variable == node.variable:
            return Region("", region.intervals)
        return None
    if isinstance(node, Relation):
        return _from_relation(node, locate)
    return None


def _from_sequence(node: Sequence, locate: Locate) -> Region | None:
    if node.brackets in ("()", "[)", "(]", "[]") and len(node.items) == 2:
        interval = _interval(node.items[0], node.items[1], node.brackets[0] == "[", node.brackets[1] == "]", locate)
        return Region("", (interval,)) if interval is not None else None
    if node.brackets == "" and all(isinstance(item, Relation) for item in node.items):
        return _joined([as_region(item, locate) for item in node.items], node.joiner == "or")
    if node.brackets == "{}" and node.items and all(isinstance(item, Expression) for item in node.items):
        points = [_interval(item, item, True, True, locate) for item in node.items]
        return _merged("", points)
    return None


def _interval(low: Node, high: Node, low_in: bool, high_in: bool, locate: Locate) -> Interval | None:
    places = [float("inf") * infinite(end) if infinite(end) else locate(end) for end in (low, high)]
    low_at, high_at = places
    if low_at is None or high_at is None:
        return None
    if infinite(low) == 1 or infinite(high) == -1 or low_at > high_at:
        return None
    return Interval(low, high, low_in and not infinite(low), high_in and not infinite(high), low_at, high_at)


def _from_relation(node: Relation, locate: Locate) -> Region | None:
    if node.ops == ("in",) and isinstance(node.sides[0], Symbol):
        region = as_region(node.sides[1], locate)
        return Region(node.sides[0].name, region.intervals) if region is not None else None
    if len(node.ops) == 1 and any(isinstance(side, Apply) and side.op == "abs" for side in node.sides):
        return _from_absolute(node, locate)
    named = [side for side in node.sides if isinstance(side, Symbol)]
    if len(named) != 1 or any(op not in _FLIPPED for op in node.ops) or node.ops in (("=",), ("=", "=")):
        return None
    variable = named[0]
    if any(free_symbols(side) for side in node.sides if side is not variable):
        return None
    at = node.sides.index(variable)
    low, high, low_in, high_in = _MINUS_INFINITY, _INFINITY, False, False
    bounds: list[tuple[str, Node]] = []
    if at > 0:
        bounds.append((_FLIPPED[node.ops[at - 1]], node.sides[at - 1]))
    if at < len(node.ops):
        bounds.append((node.ops[at], node.sides[at + 1]))
    if len(bounds) != len(node.ops):
        return None
    ends: tuple[Node, Node] = (low, high)
    for op, value in bounds:
        if op == "!=" and len(bounds) == 1:
            halves = [
                _interval(_MINUS_INFINITY, value, False, False, locate),
                _interval(value, _INFINITY, False, False, locate),
            ]
            return _merged(variable.name, halves)
        if op in (">", ">="):
            ends, low_in = (value, ends[1]), op == ">="
        elif op in ("<", "<="):
            ends, high_in = (ends[0], value), op == "<="
        else:
            return None
    interval = _interval(ends[0], ends[1], low_in, high_in, locate)
    return Region(variable.name, (interval,)) if interval is not None else None


def _from_absolute(node: Relation, locate: Locate) -> Region | None:
    """The region of `|x - c| < r` and similar relations, with a constant on the other side."""
    op, (distance, bound) = node.ops[0], node.sides
    if not (isinstance(distance, Apply) and distance.op == "abs"):
        op, distance, bound = _FLIPPED.get(op, ""), bound, distance
    shifted = _shifted(distance.args[0]) if isinstance(distance, Apply) else None
    radius = locate(bound)
    if op not in ("<", "<=", ">", ">=") or shifted is None or radius is None or radius < 0:
        return None
    name, shift = shifted
    low, high = (
        Apply("add", (end, *(Apply("neg", (part,)) for part in shift))) if shift else end
        for end in (Apply("neg", (bound,)), bound)
    )
    closed = "=" in op
    if op[0] == "<":
        return _merged(name, [_interval(low, high, closed, closed, locate)]) if radius > 0 or closed else None
    outer = [
        _interval(_MINUS_INFINITY, low, False, closed, locate),
        _interval(high, _INFINITY, closed, False, locate),
    ]
    return _merged(name, outer)


def _shifted(node: Node) -> tuple[str, tuple[Node, ...]] | None:
    """Split `x`, or `x` with constants added, into the variable's name and the constants; None for other nodes."""
    parts = node.args if isinstance(node, Apply) and node.op == "add" else (node,)
    names = [part.name for part in parts if isinstance(part, Symbol)]
    constants = tuple(part for part in parts if not isinstance(part, Symbol))
    return (names[0], constants) if len(names) == 1 and not any(map(free_symbols, constants)) else None


def _complement(region: Region) -> Region:
    """The part of the line outside the region."""
    gaps: list[Interval] = []
    low_in, low_at = False, float("-inf")
    end: Node = _MINUS_INFINITY
    for interval in region.intervals:
        if low_at < interval.low_at or (low_at == interval.low_at and low_in and not interval.low_in):
            gaps.append(Interval(end, interval.low, low_in, not interval.low_in, low_at, interval.low_at))
        end, low_in, low_at = interval.high, not interval.high_in, interval.high_at
    if low_at < float("inf"):
        gaps.append(Interval(end, _INFINITY, low_in, False, low_at, float("inf")))
    return Region(region.variable, tuple(gaps))


def rest_of(regions: Many[Region | None]) -> Region | None:
    """The part of the line outside all these regions; None if one of them is not a region."""
    whole = _joined(regions, True) if regions else None
    return _complement(whole) if whole is not None else None


def _joined(regions: Many[Region | None], union: bool) -> Region | None:
    known = [region for region in regions if region is not None]
    if len(known) != len(regions) or len({region.variable for region in known if region.variable}) > 1:
        return None
    variable = next((region.variable for region in known if region.variable), "")
    if union:
        return _merged(variable, [interval for region in known for interval in region.intervals])
    current = list(known[0].intervals)
    for region in known[1:]:
        if len(current) * len(region.intervals) > 1000:
            return None
        pairs = [_common(a, b) for a in current for b in region.intervals]
        current = [pair for pair in pairs if pair is not None]
    return _merged(variable, list(current))


def _common(a: Interval, b: Interval) -> Interval | None:
    """The intersection of two intervals; None if it is empty. If two ends are equal, the open end is used."""
    low = max(a, b, key=lambda each: (each.low_at, not each.low_in))
    high = min(a, b, key=lambda each: (each.high_at, each.high_in))
    if low.low_at > high.high_at or (low.low_at == high.high_at and not (low.low_in and high.high_in)):
        return None
    return Interval(low.low, high.high, low.low_in, high.high_in, low.low_at, high.high_at)


def _merged(variable: str, intervals: Many[Interval | None]) -> Region | None:
    """The region of the intervals, in order. Intervals that touch or overlap are joined."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) != len(intervals):
        return None
    result: list[Interval] = []
    for interval in sorted(known, key=lambda each: (each.low_at, not each.low_in)):
        last = result[-1] if result else None
        touches = last is not None and (
            interval.low_at < last.high_at or (interval.low_at == last.high_at and (interval.low_in or last.high_in))
        )
        if last is None or not touches:
            result.append(interval)
            continue
        further = (interval.high_at, interval.high_in) > (last.high_at, last.high_in)
        end = interval if further else last
        result[-1] = Interval(last.low, end.high, last.low_in, end.high_in, last.low_at, end.high_at)
    return Region(variable, tuple(result))
