"""Find and run the tests that test code defines, as unittest and pytest would."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sandbox.inside.testing import small_pytest
from sandbox.inside.testing.small_pytest import NotSupported, Skipped


class NotPassed(Exception):
    """A test failed; the message says how."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test. It can be chosen by its name."""

    name: str
    run: Callable[[], None]


def cases(scope: Mapping[str, Any], provided: Mapping[str, Any], used: Set[str]) -> list[Case]:
    """List the tests in the scope of test code, in the order of their definition.

    Running a test raises `Skipped` if the test code skips it, and another exception if it does not pass.

    Args:
        scope: global variables of the test code.
        provided: mapping from each argument name that a test function may use to the function under test.
        used: names that the test code reads. It calls functions with these names itself, so they are not listed.
    """
    fixtures = {item.fixture: item for item in scope.values() if inspect.isroutine(item) and hasattr(item, "fixture")}
    cases: list[Case] = []
    for name, item in list(scope.items()):
        if getattr(item, "__module__", None) != scope["__name__"] or hasattr(item, "fixture"):
            continue
        if inspect.isclass(item) and _is_unittest(item):
            cases += _of_unittest(item)
        elif inspect.isclass(item) and name.startswith("Test") and "__init__" not in vars(item):
            cases += _of_class(item, fixtures, provided)
        elif isinstance(item, types.FunctionType) and name.startswith("test") and name not in used:
            cases.append(Case(name, _runner(item, fixtures, provided)))
    return cases


def _is_unittest(kind: type) -> bool:
    return any(base.__module__ == "unittest.case" and base.__name__ == "TestCase" for base in kind.__mro__)


def _of_unittest(kind: type) -> Iterator[Case]:
    import unittest

    for method in unittest.defaultTestLoader.getTestCaseNames(kind):
        yield Case(f"{kind.__name__}.{method}", lambda method=method: _run_method(kind, method))  # type: ignore[misc]


def _run_method(kind: Any, method: str) -> None:
    """Run a method with its set-up and tear-down.

    A test that is expected to fail is skipped, because a wrong program would pass it.
    """
    import unittest

    if any(getattr(item, "__unittest_expecting_failure__", False) for item in (kind, getattr(kind, method))):
        raise Skipped("it is expected to fail")
    failures: list[str] = []

    class Outcome(unittest.TestResult):
        def addError(self, test: Any, err: Any) -> None:
            failures.append(_described(err[1]))

        addFailure = addError

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
            if err is not None:
                failures.append(_described(err[1]))

    outcome = Outcome()
    unittest.TestSuite([kind(method)]).run(outcome)
    if failures:
        raise NotPassed(failures[0])
    if outcome.skipped:
        raise Skipped(outcome.skipped[0][1])


def _described(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def _of_class(kind: type, fixtures: Mapping[str, Any], provided: Mapping[str, Any]) -> Iterator[Case]:
    for name, function in list(vars(kind).items()):
        if not (name.startswith("test") and isinstance(function, types.FunctionType)):
            continue

        def run(name: str = name, function: types.FunctionType = function) -> None:
            instance: Any = kind()
            getattr(kind, "setup_class", lambda: None)()
            getattr(instance, "setup_method", lambda: None)()
            try:
                _runner(function, fixtures, {**provided, "self": instance})()
            finally:
                getattr(instance, "teardown_method", lambda: None)()
                getattr(kind, "teardown_class", lambda: None)()

        yield Case(f"{kind.__name__}.{name}", run)


def _runner(
    function: types.FunctionType, fixtures: Mapping[str, Any], provided: Mapping[str, Any]
) -> Callable[[], None]:
    def run() -> None:
        if inspect.iscoroutinefunction(function):
            raise NotSupported(f"{function.__name__} is a coroutine, which only a plug-in of pytest can run")
        if small_pytest.left_out(function):
            raise Skipped("it is marked skip, skipif or xfail")
        for chosen in small_pytest.parameter_sets(function):
            with _arguments(function, {**provided, **chosen}, fixtures) as arguments:
                function(**arguments)

    return run


@contextmanager
def _arguments(
    function: Callable[..., Any], given: Mapping[str, Any], fixtures: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Make the arguments of a test function or fixture: given values, otherwise values of fixtures.

    The fixtures are torn down when the context ends.
    """
    with ExitStack() as stack:
        arguments = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in given:
                arguments[name] = given[name]
            elif name in fixtures:
                made = stack.enter_context(_arguments(fixtures[name], given, fixtures))
                arguments[name] = stack.enter_context(_made(fixtures[name], made))
            elif parameter.default is inspect.Parameter.empty:
                raise NotSupported(f"pytest's fixture {name!r}, which {function.__name__} takes")
        yield arguments


@contextmanager
def _made(fixture: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[Any]:
    value = fixture(**arguments)
    if not isinstance(value, types.GeneratorType):
        yield value
        return
    yield next(value)
    for _ in value:
        raise NotSupported("a fixture that yields twice")
