r"""Turns sums of unit vectors, such as `3\mathbf{i} + 4\mathbf{j}`, into vectors of components."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rewards.mathematics.nodes import (
    Apply,
    Constant,
    Expression,
    Node,
    Number,
    Sequence,
    Symbol,
    free_symbols,
    rename,
    walk,
)

# In normalised text every unit vector has a hat.
_HATS = ("\\hat i", "\\hat j", "\\hat k")
_LETTERS: tuple[Node, ...] = (Constant("i"), Symbol("j"), Symbol("k"))
_ZERO, _ONE = Number(Fraction(0)), Number(Fraction(1))


def with_components(node: Node) -> Node:
    r"""Replace the sums of hatted unit vectors in a node by their components, as in `\langle 3, 4 \rangle`.

    `\mathbf{i}` without j and k is the imaginary unit in a bold font.
    """
    names = free_symbols(node)
    if not names.intersection(_HATS):
        return node
    if not names.intersection(_HATS[1:]):
        return rename(node, {_HATS[0]: Constant("i")})
    if isinstance(node, Expression):
        components = _components(node, tuple(Symbol(name) for name in _HATS))
        return _tuple(components) if components is not None else node
    if isinstance(node, Sequence):
        return Sequence(node.brackets, tuple(with_components(item) for item in node.items), node.joiner)
    return node


def plain_vector(node: Node) -> Sequence | None:
    """The components of a sum such as `3i - 4j + 5k` without marks on the letters.

    It must contain i, and also j or k.
    """
    if not isinstance(node, Apply) or not any(each == _LETTERS[0] for each in walk(node)):
        return None
    components = _components(node, _LETTERS) if free_symbols(node) & {"j", "k"} else None
    return _tuple(components) if components is not None else None


def _tuple(components: list[Node]) -> Sequence:
    return Sequence("<>", tuple(components if components[2] != _ZERO else components[:2]))


def _components(node: Node, units: tuple[Node, ...]) -> list[Node] | None:
    """The factors of the three units in a sum; None if a part of the sum is not a vector."""
    if node in units:
        return [_ONE if node == unit else _ZERO for unit in units]
    if not isinstance(node, Apply):
        return None
    if node.op == "neg":
        return _scaled(_components(node.args[0], units), lambda each: Apply("neg", (each,)))
    if node.op == "div":
        below = node.args[1]
        return _scaled(_components(node.args[0], units), lambda each: Apply("div", (each, below)))
    if node.op == "mul":
        vectors = [_components(arg, units) for arg in node.args]
        known = [each for each in vectors if each is not None]
        scalars = tuple(arg for arg, vector in zip(node.args, vectors, strict=True) if vector is None)
        # A product of two vectors is not a sum of unit vectors.
        if len(known) != 1 or any(each in units for scalar in scalars for each in walk(scalar)):
            return None
        return _scaled(known[0], lambda each: Apply("mul", (*scalars, each)))
    if node.op != "add":
        return None
    parts = [_components(arg, units) for arg in node.args]
    if any(part is None for part in parts):
        return None
    columns = zip(*(part for part in parts if part is not None), strict=True)
    sums = [tuple(each for each in column if each != _ZERO) for column in columns]
    return [each[0] if len(each) == 1 else Apply("add", each) if each else _ZERO for each in sums]


def _scaled(components: list[Node] | None, scale: Callable[[Node], Node]) -> list[Node] | None:
    return None if components is None else [each if each == _ZERO else scale(each) for each in components]
