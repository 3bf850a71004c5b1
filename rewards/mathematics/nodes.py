"""The typed nodes of a mathematical answer that has been read.

Nodes are plain immutable data. Nothing in them is ever executed; `rewards.mathematics.comparing.evaluate` computes
their values, and estimates the cost of each operation before the operation is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction


class Unreadable(Exception):
    """The parser cannot read the text, or the text is larger than an answer that a person would write."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational.

    `decimals` is the number of digits after the point; None if the number was not written as a plain decimal. For a
    numeral with a base, `bare` is the value that its digits have in base ten.
    """

    value: Fraction
    decimals: int | None = None
    bare: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """One of `pi`, `e`, `i`, `infinity`."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable with its subscript, such as `x` or `x_1`."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation on expressions: `add`, `mul`, `div`, `pow`, `neg`, `root`, `sin`, `log`, `binom`, ..."""

    op: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """A sum, product, integral, limit or set builder over a bound variable.

    Such a node is compared but never evaluated, because an answer that restates the problem is not a solution.
    """

    op: str
    variable: str
    limits: tuple[Node, ...]
    body: Node


@dataclass(frozen=True, slots=True)
class Sequence:
    """Items between brackets `()`, `[)`, `{}`, `<>`, or without brackets (`""`), joined by `,`, `or` or `and`."""

    brackets: str
    items: tuple[Node, ...]
    joiner: str = ","


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain `sides[0] ops[0] sides[1] ...` with operators `=`, `!=`, `<`, `>`, `<=`, `>=`, `~`, `in`."""

    sides: tuple[Node, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length; `kind` is `matrix`, or `det` if it is between the bars of a determinant."""

    kind: str
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as a product of powers of base units (`dimensions`, sorted) and a number (`factor`)."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit."""

    value: Node
    unit: Unit


@dataclass(frozen=True, slots=True)
class RatioNode:
    """`a:b` or `a:b:c`.

    If the ratio can be a time of day, `clock` is the number of seconds after midnight. `exact_clock` says whether a.m.
    or p.m. was written.
    """

    items: tuple[Node, ...]
    clock: int | None = None
    exact_clock: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Words in lower case, without font macros and without the final period."""

    words: str


Node = (
    Number | Constant | Symbol | Apply | Bound | Sequence | Relation | Matrix | Quantity | RatioNode | Text
)  # fmt: skip
Expression = (Number, Constant, Symbol, Apply, Bound)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below a node."""
    if isinstance(node, Apply):
        return node.args
    if isinstance(node, (Sequence, RatioNode)):
        return node.items
    if isinstance(node, Relation):
        return node.sides
    if isinstance(node, Bound):
        return (*node.limits, node.body)
    if isinstance(node, Matrix):
        return tuple(cell for row in node.rows for cell in row)
    if isinstance(node, Quantity):
        return (node.value,)
    return ()


def walk(node: Node) -> Iterator[Node]:
    """A node and all nodes below it."""
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(children(current))


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the variables that are not bound."""
    if isinstance(node, Symbol):
        return frozenset((node.name,))
    if isinstance(node, Bound):
        inner = free_symbols(node.body) - {node.variable}
        return inner.union(*(free_symbols(limit) for limit in node.limits))
    below = children(node)
    return frozenset().union(*(free_symbols(child) for child in below)) if below else frozenset()


def rename(node: Node, swap: Mapping[str, Node]) -> Node:
    """The same tree, in which the free variables that are keys of `swap` are replaced by their values in `swap`."""
    if isinstance(node, Symbol):
        return swap.get(node.name, node)
    if isinstance(node, Apply):
        return Apply(node.op, tuple(rename(arg, swap) for arg in node.args))
    if isinstance(node, Sequence):
        return Sequence(node.brackets, tuple(rename(item, swap) for item in node.items), node.joiner)
    if isinstance(node, Relation):
        return Relation(tuple(rename(side, swap) for side in node.sides), node.ops)
    if isinstance(node, Bound):
        inner = {old: new for old, new in swap.items() if old != node.variable}
        limits = tuple(rename(limit, swap) for limit in node.limits)
        return Bound(node.op, node.variable, limits, rename(node.body, inner))
    if isinstance(node, Matrix):
        return Matrix(node.kind, tuple(tuple(rename(cell, swap) for cell in row) for row in node.rows))
    if isinstance(node, Quantity):
        return Quantity(rename(node.value, swap), node.unit)
    return node
