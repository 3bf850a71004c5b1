"""Convert plain data to JSON and back, with exact types. Both sides of the call channel use this.

None, bool, str and small int stay as they are; a list is a JSON array; everything else is an object with one key:
`i` big int (hexadecimal), `f` float (repr), `c` complex, `b` bytes (hexadecimal), `t` tuple, `s` set, `d` dict as
pairs, `q` an iterator's items, `h` a handle for an object that stays in its process.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
MAX_ITERATED = 200_000  # items taken from a generator, which may have no end
_EXACT_INT = 1 << 53  # other JSON readers lose digits of larger ints, and Python limits conversion from decimals
_HEXADECIMAL = re.compile(r"-?0x[0-9a-f]+\Z")
_ITERATORS: tuple[type, ...] = (
    range,
    map,
    filter,
    zip,
    enumerate,
    reversed,
    type(_ for _ in ()),
    type({}.keys()),
    type({}.values()),
    type({}.items()),
    type(iter([])),
    itertools.chain,
)
_MAPPINGS = (dict, collections.defaultdict, collections.OrderedDict, collections.Counter)


class NotPlainData(ValueError):
    """A value or a message is not plain data of the agreed form."""


def encode(value: Any, handle: Callable[[Any], int] | None = None, depth: int = 0) -> Any:
    """Turn plain data into a value that `json.dumps` accepts.

    Args:
        value: the data. Only exact types count: an instance of a subclass of int is not an int, since the subclass
            may define its own `__eq__`.
        handle: function that keeps an object that is not plain data, and returns its number. If it is None, such an
            object is refused.
        depth: nesting depth of `value` in the outermost value.

    Raises:
        NotPlainData: the value is not plain data, or nested deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise NotPlainData(f"data nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_EXACT_INT < value < _EXACT_INT else {"i": hex(value)}
    if kind is float:
        return {"f": repr(value)}
    deeper = depth + 1
    if kind is list or kind is collections.deque:
        return [encode(item, handle, deeper) for item in value]
    if kind is tuple:
        return {"t": [encode(item, handle, deeper) for item in value]}
    if kind in _MAPPINGS:
        return {"d": [[encode(key, handle, deeper), encode(item, handle, deeper)] for key, item in value.items()]}
    if kind is set or kind is frozenset:
        return {"s": [encode(item, handle, deeper) for item in value]}
    if kind is bytes or kind is bytearray:
        return {"b": value.hex()}
    if kind is complex:
        return {"c": [repr(value.real), repr(value.imag)]}
    if kind in _ITERATORS:
        return {"q": [encode(item, handle, deeper) for item in itertools.islice(value, MAX_ITERATED)]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), handle, deeper)
    if handle is not None:
        return {"h": handle(value)}
    raise NotPlainData(f"a value of type {kind.__name__} is not plain data")


def decode(message: Any, handle: Callable[[int], Any] | None = None, depth: int = 0) -> Any:
    """Turn a result of `json.loads` into plain data of exact types.

    Building sets and dicts hashes their items, so a hostile message can make decoding slow. So decode foreign messages
    only where time is bounded (in a sandbox); on the trusted side, compare with `compare.equal_encoded` instead.

    Raises:
        NotPlainData: the message has another form.
    """
    if depth > MAX_DEPTH:
        raise NotPlainData(f"message nested deeper than {MAX_DEPTH}")
    kind = type(message)
    if message is None or kind in (bool, str, int):
        return message
    deeper = depth + 1
    if kind is list:
        return [decode(item, handle, deeper) for item in message]
    if kind is not dict or len(message) != 1:
        raise NotPlainData("an object of another form")
    ((tag, body),) = message.items()
    if tag in ("i", "f", "c", "b"):
        return scalar(tag, body)
    if tag == "h" and handle is not None and type(body) is int:
        return handle(body)
    if type(body) is not list:
        raise NotPlainData(f"tag {tag!r} without a list")
    try:
        if tag == "t":
            return tuple(decode(item, handle, deeper) for item in body)
        if tag == "q":
            return [decode(item, handle, deeper) for item in body]
        if tag == "s":
            return {decode(item, handle, deeper) for item in body}
        if tag == "d":
            return {decode(key, handle, deeper): decode(item, handle, deeper) for key, item in body}
    except TypeError as problem:
        raise NotPlainData(f"unhashable item: {problem}") from None
    raise NotPlainData(f"unknown tag {tag!r}")


def scalar(tag: str, body: Any) -> int | float | complex | bytes:
    """Decode one tagged scalar.

    Raises:
        NotPlainData: the body is not of the tag's form.
    """
    try:
        if tag == "i" and type(body) is str and _HEXADECIMAL.match(body):
            return int(body, 16)
        if tag == "f" and type(body) is str and len(body) < 40:
            return float(body)
        if tag == "b" and type(body) is str:
            return bytes.fromhex(body)
        if tag == "c" and type(body) is list and len(body) == 2:
            return complex(scalar("f", body[0]), scalar("f", body[1]))  # type: ignore[arg-type]
    except ValueError:
        pass
    raise NotPlainData(f"a malformed value with tag {tag!r}")
