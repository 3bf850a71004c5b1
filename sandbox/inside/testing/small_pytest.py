"""The part of pytest's interface that test code may use. Pytest itself would need files, plug-ins and more time.

Other names of pytest raise `NotSupported`, so that no test is skipped silently. As in pytest, `except Exception` and
`raises(Exception)` in test code do not catch the exceptions that fail or skip a test.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

_RELATIVE, _ABSOLUTE = 1e-6, 1e-12  # the defaults of pytest


class NotSupported(BaseException):
    """The test code uses something that a tester does not support."""


class Skipped(BaseException):
    """The test code skips this test."""


class Failed(BaseException):
    """The test code fails this test."""


class Mark:
    """A mark on a test function: its name and its arguments."""

    def __init__(self, name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        self.name, self.arguments, self.keywords = name, arguments, keywords

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        function = arguments[0] if len(arguments) == 1 and not keywords else None
        if inspect.isclass(function):
            raise NotSupported(f"pytest.mark.{self.name} on a class")
        if not inspect.isroutine(function):
            return Mark(self.name, arguments, keywords)
        vars(function).setdefault("marks", []).append(self)
        return function


class _Marks:
    _KNOWN = ("parametrize", "skip", "skipif", "xfail")
    _WITHOUT_EFFECT = ("slow", "fast", "unit", "smoke", "timeout", "filterwarnings")

    def __getattr__(self, name: str) -> Mark:
        if name not in self._KNOWN + self._WITHOUT_EFFECT:
            raise NotSupported(f"pytest.mark.{name}")
        return Mark(name, (), {})


class _Approximately:
    """A value that equals numbers near the expected numbers, and lists, tuples and dicts of such numbers."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False) -> None:
        self._expected, self._nan_ok = expected, nan_ok
        self._relative = rel if rel is not None else (_RELATIVE if abs is None else 0.0)
        self._absolute = abs if abs is not None else _ABSOLUTE

    def __eq__(self, got: object) -> bool:
        return self._near(got, self._expected)

    __hash__ = None  # type: ignore[assignment]

    def _near(self, got: Any, expected: Any) -> bool:
        if isinstance(expected, Mapping):
            same = isinstance(got, Mapping) and got.keys() == expected.keys()
            return same and all(self._near(got[key], value) for key, value in expected.items())
        if isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
            same = isinstance(got, Sequence) and len(got) == len(expected)
            return same and all(self._near(*pair) for pair in zip(got, expected, strict=True))
        if isinstance(expected, bool) or not isinstance(expected, int | float | complex):
            return bool(got == expected)
        if isinstance(got, bool) or not isinstance(got, int | float | complex):
            return False
        if got == expected:
            return True
        if math.isnan(abs(expected)) or math.isnan(abs(got)):
            return self._nan_ok and math.isnan(abs(expected)) and math.isnan(abs(got))
        if math.isinf(abs(expected)) or math.isinf(abs(got)):
            return False
        return abs(got - expected) <= max(self._relative * abs(expected), self._absolute)

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"


class _Caught:
    """The result of `raises`. It contains the exception as soon as the exception was raised."""

    value: BaseException

    @property
    def type(self) -> type[BaseException]:
        return type(self.value)

    def match(self, pattern: str) -> bool:
        assert re.search(pattern, str(self.value)), f"{pattern!r} is not in {str(self.value)!r}"
        return True


@contextmanager
def _raising(expected: Any, match: str | None) -> Iterator[_Caught]:
    caught = _Caught()
    try:
        yield caught
    except expected as problem:
        caught.value = problem
    else:
        raise Failed(f"{expected} was not raised")
    if match is not None:
        caught.match(match)


def _raises(expected: Any, function: Callable[..., Any] | None = None, *arguments: Any, **keywords: Any) -> Any:
    if function is None:
        return _raising(expected, keywords.get("match"))
    with _raising(expected, None) as caught:
        function(*arguments, **keywords)
    return caught


def _fail(reason: str = "", pytrace: bool = True) -> NoReturn:
    raise Failed(reason)


def _skip(reason: str = "", allow_module_level: bool = False) -> NoReturn:
    raise Skipped(reason)


def _param(*values: Any, marks: Any = (), id: str | None = None) -> tuple[Any, ...]:
    if marks:
        raise NotSupported("pytest.param with marks")
    return values if len(values) > 1 else values[0]


def _fixture(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    if function is None:
        return lambda function: _fixture(function, **options)
    if set(options) - {"scope", "name"} or options.get("autouse"):
        raise NotSupported(f"pytest.fixture with {', '.join(options)}")
    vars(function)["fixture"] = options.get("name") or function.__name__
    return function


def stand_in() -> types.ModuleType:
    """Make the module that test code imports as `pytest`."""
    module = types.ModuleType("pytest")

    def lacking(name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotSupported(f"pytest.{name}")

    vars(module).update(
        approx=_Approximately,
        raises=_raises,
        mark=_Marks(),
        fixture=_fixture,
        param=_param,
        fail=_fail,
        skip=_skip,
        __getattr__=lacking,
    )
    return module


def parameter_sets(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The arguments for each case that `parametrize` marks define; without marks, one case without arguments."""
    sets: list[dict[str, Any]] = [{}]
    for mark in vars(function).get("marks", ()):
        if mark.name == "parametrize":
            sets = [{**earlier, **added} for added in _of_mark(*mark.arguments, **mark.keywords) for earlier in sets]
    return iter(sets)


def _of_mark(argnames: Any, argvalues: Iterable[Any], ids: Any = None) -> Iterator[dict[str, Any]]:
    names = [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else list(argnames)
    for values in argvalues:
        yield dict(zip(names, [values] if len(names) == 1 else values, strict=True))


def left_out(function: Callable[..., Any]) -> bool:
    """Whether marks say that the function must be skipped or is expected to fail."""
    for mark in vars(function).get("marks", ()):
        if mark.name in ("skip", "xfail") or (mark.name == "skipif" and mark.arguments and mark.arguments[0]):
            return True
    return False
