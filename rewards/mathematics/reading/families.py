r"""Finds values with a whole-number parameter, in the text and in the nodes: `k\pi, k \in \mathbb{Z}`, `3 \pmod 7`.

A family `Bound("integers", parameter, (), value)` means the values for all whole numbers of the parameter.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TypeGuard

from rewards.mathematics.nodes import (
    Apply,
    Bound,
    Expression,
    Node,
    Number,
    Relation,
    Sequence,
    Symbol,
    Unreadable,
    free_symbols,
    rename,
)

FAMILY = "integers"
# The name for the parameter of a residue class. In the text, this parameter has no name.
RESIDUE = "\\residue"
_WHOLE_NUMBERS = frozenset(("\\mathbb Z", "Z"))
_TAIL = 120
_GAP = r"(?:\\(?:text|mathrm|textrm|mbox)\s*+\{|[\s,;(){}$])*+"
_PHRASE = re.compile(
    r"(?:(?<![A-Za-z\\])|(?=\\(?:text|mathrm|textrm|mbox)\b))" + _GAP
    + r"(?:(?:where|for|with|and|when)\b)?+" + _GAP + r"(?:(?:any|all|every|some|each|arbitrary)\b)?+" + _GAP
    + r"(?:integers?\b" + _GAP + r"(?P<behind>[A-Za-z])|(?P<name>[A-Za-z])" + _GAP
    + r"(?:\\in\b" + _GAP + r"(?:\\mathbb|\\Bbb)?" + _GAP + r"Z(?![A-Za-z^+_])"
    + r"|(?:is|are|be|being)?" + _GAP + r"(?:an?\b|any\b|some\b)?+" + _GAP + r"integers?\b))"
    + r"[\s)}.$]*+$"
)  # fmt: skip


def is_family(node: Node) -> TypeGuard[Bound]:
    return isinstance(node, Bound) and node.op == FAMILY


def parameter_in(text: str) -> tuple[str, str] | None:
    r"""Split `k\pi \text{ where } k \text{ is an integer}` into `k\pi` and `k`; None for other texts."""
    if "integer" not in text and not ("\\in" in text and "Z" in text):
        return None
    start = max(0, len(text) - _TAIL)
    match = _PHRASE.search(text, start)
    if match is None:
        return None
    head = text[: match.start()].rstrip(" ,;")
    # If a bracket opens directly before the phrase, it is closed inside the phrase.
    return (head, match["name"] or match["behind"]) if head else None


def family(node: Node, parameter: str) -> Node:
    """Make the node a family over the parameter. Raise `Unreadable` if a part of it lacks the parameter."""
    if isinstance(node, Sequence) and node.brackets == "":
        return Sequence("", tuple(family(item, parameter) for item in node.items), node.joiner)
    if isinstance(node, Relation) and node.ops == ("=",):
        return Relation((node.sides[0], family(node.sides[1], parameter)), node.ops)
    if parameter not in free_symbols(node):
        raise Unreadable("a parameter that is not in the value")
    if has_sign(node):
        return Sequence("", tuple(Bound(FAMILY, parameter, (), each) for each in both_signs(node)))
    return Bound(FAMILY, parameter, (), node)


def residue(value: Node, modulus: Node) -> Node:
    """The residue class of a value."""
    if not isinstance(value, Expression) or not isinstance(modulus, Expression):
        raise Unreadable("a residue of something that is not a number")
    return Bound(FAMILY, RESIDUE, (), Apply("add", (value, Apply("mul", (modulus, Symbol(RESIDUE))))))


def without_parameter(node: Node) -> Node:
    r"""Turn `2k\pi, k \in \mathbb{Z}` into a family. Return any other node unchanged."""
    if not isinstance(node, Sequence) or node.brackets or len(node.items) < 2:
        return node
    *others, last = node.items
    name = whole_number_name(last)
    if name is None or not all(name in free_symbols(each) for each in others):
        return node
    return family(others[0] if len(others) == 1 else Sequence("", tuple(others), node.joiner), name)


def whole_number_name(node: Node) -> str | None:
    r"""The name in `k \in \mathbb{Z}`; None for any other node."""
    if not isinstance(node, Relation) or node.ops != ("in",) or not isinstance(node.sides[0], Symbol):
        return None
    domain = node.sides[1]
    return node.sides[0].name if isinstance(domain, Symbol) and domain.name in _WHOLE_NUMBERS else None


def both_signs(node: Node) -> tuple[Node, Node]:
    r"""Return a node such as `1 \pm 2` once with its upper and once with its lower signs (`\mp` has the other sign)."""
    return _with_sign(node, False), _with_sign(node, True)


def has_sign(node: Node) -> bool:
    """True when a plus-minus can be split: inside an expression, but not under a sum or another bound variable."""
    if not isinstance(node, Apply):
        return False
    if node.op in ("pm", "mp"):
        return True
    for arg in node.args:  # noqa: SIM110  # a generator would take more time than the rest of the function
        if has_sign(arg):
            return True
    return False


def _with_sign(node: Node, minus: bool) -> Node:
    if not isinstance(node, Apply):
        return node
    args = tuple(_with_sign(arg, minus) for arg in node.args)
    if node.op in ("pm", "mp"):
        return Apply("neg", args) if minus == (node.op == "pm") else args[0]
    return Apply(node.op, args)


def at(node: Bound, value: Node) -> Node:
    """The family's member for this value of its parameter."""
    return rename(node.body, {node.variable: value})


def whole(number: int) -> Number:
    return Number(Fraction(number))
