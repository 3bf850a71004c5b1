"""Compare a program's results with the expected values.

This code is trusted. It never runs in the process of a program.

Replies are compared in their encoded form. Foreign items are looked up among the expected items, but never put into a
hash table: a program could choose items with equal hashes, and building the table would take quadratic time.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from decimal import Decimal
from typing import Any

from sandbox.values import NotPlainData, decode, encode, scalar

_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?\Z")
_INTEGER = re.compile(r"[+-]?\d{1,400}\Z")
# In bytes. If a line is longer than this, its length is first compared with the longest length that can still be equal.
# A line that cannot be equal is then never split.
_LONG_LINE = 1 << 16
_BLANKS = b" \t\r\x0b\x0c"
_KEY_BITS = 10_000  # size of the longest int that is looked up by its digits; Python refuses to print much longer ints
_WORD_BYTES = 1 << 11  # every match of `_NUMBER` is shorter


def equal_text(got: bytes, expected: str, tolerance: float | None = None, any_order: bool = False) -> bool:
    """Whether a program printed the expected text.

    These differences are ignored: line ends of other systems, white space at the beginning and end of each line and of
    the whole text, and the amount of white space between words of a line.

    The text is read line by line up to the first difference, so text after it costs no time.

    Args:
        got: the program's output.
        expected: expected output.
        tolerance: if given, numbers may differ by `tolerance * max(1, |expected|)`; an expected integer must be equal.
        any_order: lines may come in any order.
    """
    wanted = [line.split() for line in expected.strip().split("\n")]
    got = got.strip()
    if got[:4].decode("utf-8", "ignore")[:1].isspace():  # the text begins with white space outside of ASCII
        got = got.decode("utf-8", "replace").strip().encode()
    if any_order:
        return _equal_in_any_order(got, wanted, tolerance)
    position = 0
    for words in wanted:
        if position > len(got):
            return False
        end = got.find(b"\n", position)
        end = len(got) if end < 0 else end
        if not _equal_line(got[position:end], words, tolerance):
            return False
        position = end + 1
    return position > len(got) or _is_blank(got[position:])


def _is_blank(text: bytes) -> bool:
    beginning = text[:64].decode("utf-8", "ignore")
    return not beginning.strip() and not text.decode("utf-8", "replace").strip()


def _equal_in_any_order(got: bytes, wanted: list[list[str]], tolerance: float | None) -> bool:
    if got.count(b"\n") != len(wanted) - 1:
        return False
    most = max(len(words) for words in wanted)
    lines = sorted(line.decode("utf-8", "replace").split(None, most) for line in got.split(b"\n"))
    return all(_equal_words(*pair, tolerance) for pair in zip(lines, sorted(wanted), strict=True))


def _equal_line(line: bytes, words: list[str], tolerance: float | None) -> bool:
    if len(line) > _LONG_LINE:
        most = 4 * sum(map(len, words)) if tolerance is None else _WORD_BYTES * len(words) + 4 * sum(map(len, words))
        if len(line.translate(None, _BLANKS)) > most:
            return False
    return _equal_words(line.decode("utf-8", "replace").split(None, len(words)), words, tolerance)


def _equal_words(got: list[str], expected: list[str], tolerance: float | None) -> bool:
    if tolerance is None or got == expected:
        return got == expected
    return len(got) == len(expected) and all(_equal_word(*pair, tolerance) for pair in zip(got, expected, strict=True))


def _equal_word(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    if not _NUMBER.match(got) or not _NUMBER.match(expected):
        return False
    if _INTEGER.match(expected):
        return Decimal(got) == int(expected)  # the tolerance does not apply to an expected integer
    return _close(float(got), float(expected), tolerance)


def _close(got: float, expected: float, tolerance: float) -> bool:
    if math.isinf(got) or math.isinf(expected):
        return got == expected
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def equal_encoded(message: Any, expected: Any, tolerance: float | None = None, any_order: bool = False) -> bool:
    """Whether the encoded reply `message` is the value `expected`.

    A list equals a tuple with the same items, because expected values often come from JSON. For the same reason, a text
    key of digits in an expected dictionary equals the int with these digits. A bool equals only a bool. An int equals
    an equal float. NaN equals NaN.

    Args:
        message: reply of the program's side, parsed as JSON.
        expected: plain data.
        tolerance: if given, floats may differ by `tolerance * max(1, |expected|)`; an expected int must be equal.
        any_order: a list's items may come in any order (at the outermost level).

    Raises:
        NotPlainData: the message is not of the agreed form.
    """
    try:
        if any_order and isinstance(expected, list | tuple):
            return _equal_items_in_any_order(message, expected, tolerance)
        return _equal(message, expected, tolerance)
    except RecursionError:
        raise NotPlainData("a reply nested too deep to be compared") from None


def _equal_items_in_any_order(message: Any, expected: list[Any] | tuple[Any, ...], tolerance: float | None) -> bool:
    items = _items(message)
    if items is None or len(items) != len(expected):
        return False
    ours = sorted(expected, key=lambda item: _canonical(encode(item)))
    return all(_equal(*pair, tolerance) for pair in zip(sorted(items, key=_canonical), ours, strict=True))


def _equal(message: Any, expected: Any, tolerance: float | None) -> bool:
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(message) is type(expected) and bool(message == expected)
    if isinstance(expected, int | float | complex):
        return _equal_number(_as_number(message), expected, tolerance)
    if isinstance(expected, list | tuple):
        items = _items(message)
        return (
            items is not None
            and len(items) == len(expected)
            and all(_equal(item, ours, tolerance) for item, ours in zip(items, expected, strict=True))
        )
    if isinstance(expected, dict):
        return _equal_dict(message, expected, tolerance)
    if isinstance(expected, set | frozenset):
        return _equal_set(message, expected)
    if isinstance(expected, bytes | bytearray):
        return _tag(message) == "b" and scalar("b", message["b"]) == bytes(expected)
    raise NotPlainData(f"an expected value of type {type(expected).__name__} cannot be compared")


def _canonical(message: Any) -> str:
    """Text to sort values by. Equal plain values have the same text, for example 1 and 1.0, [1] and (1,)."""
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
    if got == expected:
        return True  # Python compares numbers of all types and sizes exactly
    if isinstance(got, float) and isinstance(expected, float) and math.isnan(got) and math.isnan(expected):
        return True
    if tolerance is None or isinstance(expected, int):
        return False  # the tolerance does not apply to an expected int
    try:
        left, right = complex(got), complex(expected)
    except OverflowError:
        return False  # one of the two is an int that is too large for a float
    return _close(left.real, right.real, tolerance) and _close(left.imag, right.imag, tolerance)


def _equal_dict(message: Any, expected: dict[Any, Any], tolerance: float | None) -> bool:
    body = message.get("d") if _tag(message) == "d" else None
    if type(body) is not list or len(body) != len(expected):
        return False
    remaining = dict(expected)
    for pair in body:
        if type(pair) is not list or len(pair) != 2:
            raise NotPlainData("a dictionary entry that is not a pair")
        key = _key(pair[0])
        if key not in remaining and type(key) is int and key.bit_length() < _KEY_BITS and str(key) in remaining:
            key = str(key)
        if key not in remaining or not _equal(pair[1], remaining.pop(key), tolerance):
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

    Any other value (for example a frozenset) becomes an object that does not equal any expected key.
    """
    tag = _tag(message)
    if tag == "t" and type(message["t"]) is list:
        return tuple(_key(item) for item in message["t"])
    if type(message) in (list, dict) and tag not in ("i", "f", "c", "b"):
        return object()
    return decode(message)
