"""Plain data crosses unchanged, nothing else crosses, and comparison is exact."""

from __future__ import annotations

import collections
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.outside.compare import equal_encoded, equal_text
from sandbox.values import NotPlainData, decode, encode

RELAXED = settings(deadline=None)  # a busy machine is no failure
# NaN differs from itself and so from what it crosses to; it has a case of its own below.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner),
    max_leaves=4,
)
TAGGED = st.sampled_from(
    [encode(value) for value in (10**400, 10**5000, float("nan"), float("inf"), 1j, complex("nan+infj"), b"a", ())]
    + [{"i": "0x"}, {"f": "1e999"}, {"c": ["1"]}, {"b": "0"}, {"t": None}, {"d": [1]}, {"s": [[]]}]
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.sets(HASHABLE) | st.dictionaries(HASHABLE, inner),
    max_leaves=20,
)


def crossed(value: Any) -> Any:
    return json.loads(json.dumps(encode(value)))


@given(DATA)
@RELAXED
def test_data_crosses_unchanged(value: Any) -> None:
    back = decode(crossed(value))
    assert back == value
    assert type(back) is type(value)


@given(DATA)
@RELAXED
def test_data_equals_itself(value: Any) -> None:
    assert equal_encoded(crossed(value), value)


@given(st.lists(st.integers() | st.text() | st.tuples(st.integers())), st.randoms())
@RELAXED
def test_any_order(values: list[Any], random: Any) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert equal_encoded(crossed(shuffled), values, any_order=True)
    assert not equal_encoded(crossed([*shuffled, "one more"]), values, any_order=True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | TAGGED,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from("abcdfhistqx"), inner, max_size=2)
            | st.fixed_dictionaries({}, optional={"d": st.lists(st.lists(inner, min_size=2, max_size=2))})
        ),
        max_leaves=20,
    )
)
@RELAXED
def test_no_message_breaks_the_trusted_side(message: Any) -> None:
    for expected in (1, 10**400, 1.5, "a", [1], {1: 2}, {"1": 2}, {1, 2}, None, True, b"a", 1j, [{"a": [1j]}]):
        try:
            equal_encoded(message, expected, 1e-6, any_order=True)
        except NotPlainData:
            continue


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "equal"),
    [
        (1, 1, None, True),
        (True, 1, None, False),
        (1, True, None, False),
        (1.0, 1, None, True),
        (1, 1.0, None, True),
        ((1, 2), [1, 2], None, True),
        ([1, 2], [2, 1], None, False),
        ([1, [2, (3,)]], [1, [2, [3]]], None, True),
        (2**53 + 1, 2**53, None, False),
        (2**53 + 1, 2**53, 1e-3, False),
        (0.1 + 0.2, 0.3, None, False),
        (0.1 + 0.2, 0.3, 1e-9, True),
        (1e9 + 1, 1e9, 1e-8, True),
        (1e9 + 100, 1e9, 1e-8, False),
        (float("nan"), float("nan"), None, True),
        (float("inf"), float("inf"), 1e-6, True),
        (float("inf"), 1e300, 1e-6, False),
        (10**400, 1.0, 1e-6, False),
        ("1", 1, None, False),
        (None, 0, None, False),
        ({"a": 1}, {"a": 1}, None, True),
        ({1: "a"}, {"1": "a"}, None, True),
        ({"1": "a"}, {1: "a"}, None, False),
        ({1: 2, 3: 4}, {1: 2}, None, False),
        ({1, 2}, {2, 1}, None, True),
        ({1, 2}, [1, 2], None, False),
        (frozenset({1}), {1}, None, True),
        (b"a", b"a", None, True),
        (b"a", "a", None, False),
        (1 + 2j, 1 + 2j, None, True),
        (1 + 2j, 1 + 2.0000001j, 1e-6, True),
        (range(3), [0, 1, 2], None, True),
        (collections.Counter("aab"), {"a": 2, "b": 1}, None, True),
        (collections.deque([1]), [1], None, True),
        ([], {}, None, False),
        (1j, 10**400, None, False),
        (10**400, 1j, 1e-6, False),
        (10**400, 10**400, 1e-6, True),
        ({10**5000: 1}, {"a": 1}, None, False),
        (1000000007.0 - 999, 1000000007, 1e-6, False),
        (1000000007.0, 1000000007, 1e-6, True),
        (1000000007 - 999, 1000000007.5, 1e-5, True),
    ],
)
def test_equality(got: Any, expected: Any, tolerance: float | None, equal: bool) -> None:
    assert equal_encoded(crossed(got), expected, tolerance) is equal


def test_a_pair_given_twice_is_no_dictionary() -> None:
    assert not equal_encoded({"d": [[1, 2], [1, 2]]}, {1: 2, 3: 4})
    assert not equal_encoded({"s": [1, 1]}, {1, 2})


def test_subclasses_do_not_cross() -> None:
    class Sly(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    with pytest.raises(NotPlainData, match="Sly"):
        encode(Sly(1))
    with pytest.raises(NotPlainData):
        encode({1: object()})


def test_depth_is_bounded() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(NotPlainData, match="nested deeper"):
        encode(deep)
    with pytest.raises(NotPlainData, match="nested deeper"):
        decode(deep)


@pytest.mark.parametrize(
    "message",
    [
        {"i": "0xzz"},
        {"i": 5},
        {"f": "x" * 50},
        {"b": "0"},
        {"c": ["1"]},
        {"?": 1},
        {"t": 1},
        {"d": [[1]]},
        {"d": [[[1], 2]]},
        {"s": [[1]]},
        {"h": 1},
        {},
        {"i": "1", "f": "1"},
    ],
)
def test_malformed_messages_are_refused(message: Any) -> None:
    with pytest.raises((NotPlainData, ValueError)):
        decode(message)


def test_colliding_numbers_take_no_time() -> None:
    """These have one hash; put into a set or dictionary they take time that grows with their square."""
    colliding = [{"i": hex((2**61 - 1) * (n + 2**53))} for n in range(30_000)]
    started = time.process_time()
    assert not equal_encoded({"s": colliding}, set(range(30_000)))
    assert not equal_encoded({"d": [[key, 1] for key in colliding]}, dict.fromkeys(range(30_000), 1))
    assert not equal_encoded(colliding, list(range(30_000)), any_order=True)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("got", "expected", "options", "equal"),
    [
        ("a\n", "a", {}, True),
        ("a \r\nb\n\n", "a\nb", {}, True),
        ("a  b", "a b", {}, True),
        ("a\n\nb", "a\nb", {}, False),
        ("ab", "a b", {}, False),
        ("1.0", "1", {}, False),
        ("1.0", "1", {"tolerance": 1e-9}, True),
        ("x 0.33333", "x 0.33334", {"tolerance": 1e-4}, True),
        ("x 0.3333", "x 0.3344", {"tolerance": 1e-4}, False),
        ("nan", "1", {"tolerance": 1e9}, False),
        ("1_0", "10", {"tolerance": 1e-9}, False),
        ("1e999", "1", {"tolerance": 1e9}, False),
        ("b\na", "a\nb", {}, False),
        ("b\na", "a\nb", {"any_order": True}, True),
        ("b\na\na", "a\nb", {"any_order": True}, False),
        ("", "", {}, True),
        ("\n", "", {}, True),
        ("YES", "Yes", {}, False),
        ("999999008", "1000000007", {"tolerance": 1e-3}, False),
        ("1000000007.0", "1000000007", {"tolerance": 1e-3}, True),
        ("1e9", "1000000000", {"tolerance": 1e-3}, True),
        ("999999008", "1000000007.0", {"tolerance": 1e-3}, True),
        ("9" * 400 + ".5", "9" * 400, {"tolerance": 1e-3}, False),
        ("\u00a0\na\u2003b\n\u00a0", "a b", {}, True),
        (" *\n***", "*\n***", {}, True),
        ("a\nb\nc", "a\nb", {}, False),
        ("a", "a\nb", {}, False),
        ("a" + " " * 70_000 + "b", "a b", {}, True),
    ],
)
def test_printed_text(got: str, expected: str, options: dict[str, Any], equal: bool) -> None:
    assert equal_text(got.encode(), expected, **options) is equal


def test_undecodable_output_is_compared_too() -> None:
    assert not equal_text(b"\xff\xfe", "a")


@pytest.mark.parametrize("tolerance", [None, 1e-6])
@pytest.mark.parametrize(
    "got",
    [b"a\n" * 4_000_000, b"1 " * 4_000_000, b"\xff" * 8_000_000, b"\n" * 8_000_000, "\u00a0\n".encode() * 2_700_000],
    ids=["lines", "words", "undecodable", "empty lines", "blank lines"],
)
def test_long_outputs_take_no_time(got: bytes, tolerance: float | None) -> None:
    started = time.process_time()
    assert not equal_text(got, "x", tolerance)
    assert not equal_text(b"1\n" + got, "1\n2", tolerance)
    assert not equal_text(b"1 " + got, "1 2", tolerance)
    assert time.process_time() - started < 0.5


def test_deep_messages_are_refused() -> None:
    message: Any = 1
    expected: Any = 1
    for _ in range(5000):
        message, expected = [message], [expected]
    with pytest.raises(NotPlainData, match="too deep"):
        equal_encoded(message, expected)
