"""Trusted comparison of what a program gave with what was expected. Nothing here runs in a program's process.

Replies are compared in their encoded form: foreign items are looked up among the expected ones and never put into a
hash table themselves, since items chosen to collide would take quadratic time there.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from sandbox.values import NotPlainData, decode, encode, scalar

_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?\Z")


def equal_text(got: bytes, expected: str, tolerance: float | None = None, any_order: bool = False) -> bool:
    """Whether a program printed what was expected.

    Forgiven: line ends of other systems, white space at the ends of lines and around the whole, and how much white
    space separates words within a line.

    Args:
        got: what was printed.
        expected: what should have been.
        tolerance: where given, numbers may differ by `tolerance * max(1, |expected|)`.
        any_order: lines may come in any order.
    """
    got_lines = _lines(got.decode("utf-8", "replace"))
    expected_lines = _lines(expected)
    if any_order:
        got_lines.sort()
        expected_lines.sort()
    if got_lines == expected_lines:
        return True
    if tolerance is None or len(got_lines) != len(expected_lines):
        return False
    return all(
        len(left) == len(right) and all(_equal_word(*pair, tolerance) for pair in zip(left, right, strict=True))
        for left, right in zip(got_lines, expected_lines, strict=True)
    )


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.replace("\r\n", "\n").strip().split("\n")]


def _equal_word(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    if not _NUMBER.match(got) or not _NUMBER.match(expected):
        return False
    return _close(float(got), float(expected), tolerance)


def _close(got: float, expected: float, tolerance: float) -> bool:
    if math.isinf(got) or math.isinf(expected):
        return got == expected
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def equal_encoded(message: Any, expected: Any, tolerance: float | None = None, any_order: bool = False) -> bool:
    """Whether the encoded reply `message` is the value `expected`.

    A list equals a tuple with the same items, since expected values often come from JSON; for the same reason an
    expected dictionary's key of digits equals that int. A bool equals only a bool, an int equals an equal float, NaN
    equals NaN.

    Args:
        message: what the program's side sent, parsed as JSON.
        expected: plain data.
        tolerance: where given, floats may differ by `tolerance * max(1, |expected|)`.
        any_order: a list's items may come in any order (at the outermost level).

    Raises:
        NotPlainData: the message is not of the agreed form.
    """
    if any_order and isinstance(expected, list | tuple):
        items = _items(message)
        if items is None or len(items) != len(expected):
            return False
        ours = sorted(expected, key=lambda item: _canonical(encode(item)))
        theirs = sorted(items, key=_canonical)
        return all(equal_encoded(got, item, tolerance) for got, item in zip(theirs, ours, strict=True))
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(message) is type(expected) and bool(message == expected)
    if isinstance(expected, int | float | complex):
        return _equal_number(_as_number(message), expected, tolerance)
    if isinstance(expected, list | tuple):
        items = _items(message)
        return (
            items is not None
            and len(items) == len(expected)
            and all(equal_encoded(item, ours, tolerance) for item, ours in zip(items, expected, strict=True))
        )
    if isinstance(expected, dict):
        return _equal_dict(message, expected, tolerance)
    if isinstance(expected, set | frozenset):
        return _equal_set(message, expected)
    if isinstance(expected, bytes | bytearray):
        return _tag(message) == "b" and scalar("b", message["b"]) == bytes(expected)
    raise NotPlainData(f"an expected value of type {type(expected).__name__} cannot be compared")


def _canonical(message: Any) -> str:
    """Text by which equal plain values sort alike: 1 and 1.0, [1] and (1,)."""
    number = _as_number(message)
    if isinstance(number, float) and number.is_integer() and abs(number) < 1 << 53:
        message = int(number)
    items = _items(message)
    if items is not None:
        return "[" + ",".join(_canonical(item) for item in items) + "]"
    return json.dumps(message, sort_keys=True)


def _tag(message: Any) -> str | None:
    return next(iter(message)) if type(message) is dict and len(message) == 1 else None


def _items(message: Any) -> list[Any] | None:
    if type(message) is list:
        return message
    if _tag(message) in ("t", "q"):
        body = next(iter(message.values()))
        return body if type(body) is list else None
    return None


def _as_number(message: Any) -> int | float | complex | None:
    if type(message) is int:
        return message
    tag = _tag(message)
    if tag in ("i", "f", "c"):
        value = scalar(tag, message[tag])
        assert not isinstance(value, bytes)
        return value
    return None


def _equal_number(got: int | float | complex | None, expected: int | float | complex, tolerance: float | None) -> bool:
    if got is None:
        return False
    if isinstance(got, complex) or isinstance(expected, complex):
        left, right = complex(got), complex(expected)
        if tolerance is None:
            return left == right
        return _close(left.real, right.real, tolerance) and _close(left.imag, right.imag, tolerance)
    if got == expected:
        return True
    if isinstance(got, int) and isinstance(expected, int):
        return False  # exact whatever the tolerance
    if isinstance(got, float) and isinstance(expected, float) and math.isnan(got) and math.isnan(expected):
        return True
    try:
        return tolerance is not None and _close(float(got), float(expected), tolerance)
    except OverflowError:
        return False  # an int beyond every float


def _equal_dict(message: Any, expected: dict[Any, Any], tolerance: float | None) -> bool:
    body = message.get("d") if _tag(message) == "d" else None
    if type(body) is not list or len(body) != len(expected):
        return False
    remaining = dict(expected)
    for pair in body:
        if type(pair) is not list or len(pair) != 2:
            raise NotPlainData("a dictionary entry that is not a pair")
        key = _key(pair[0])
        if key not in remaining and type(key) is int and str(key) in remaining:
            key = str(key)
        if key not in remaining or not equal_encoded(pair[1], remaining.pop(key), tolerance):
            return False
    return True


def _equal_set(message: Any, expected: set[Any] | frozenset[Any]) -> bool:
    body = message.get("s") if _tag(message) == "s" else None
    if type(body) is not list or len(body) != len(expected):
        return False
    remaining = Counter(expected)
    for item in body:
        key = _key(item)
        if remaining[key] != 1:
            return False
        remaining[key] = 0
    return True


def _key(message: Any) -> Any:
    """A dictionary key or set item of a reply: a scalar or a tuple of keys.

    Anything else (a frozenset) becomes an object that equals no expected key.
    """
    tag = _tag(message)
    if tag == "t" and type(message["t"]) is list:
        return tuple(_key(item) for item in message["t"])
    if type(message) in (list, dict) and tag not in ("i", "f", "c", "b"):
        return object()
    return decode(message)
