"""The watchdog's error and Ray's blocking calls, without Ray: a stand-in loses errors as Ray's C++ code does."""

from __future__ import annotations

import ast
import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from grpo.cluster import ready
from grpo.cluster.activity import Activity, driving
from grpo.cluster.failures import Stalled
from grpo.cluster.ready import next_of, ready_of, values_of
from grpo.cluster.waiting import wait_for
from grpo.config import WatchdogConfig as Settings
from grpo.run.watchdog import Watchdog
from grpo.types import Phase

ROOT = Path(__file__).parents[3]


def end() -> NoReturn:
    raise Stalled("nothing has moved")


def in_c(action: Callable[[], object]) -> None:
    """Call a function from C, which loses the function's error."""
    ctypes.CFUNCTYPE(None)(action)()


def never_ready(
    references: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
) -> tuple[list[Any], list[Any]]:
    in_c(lambda: time.sleep(timeout))
    return [], references


@pytest.mark.parametrize("wait", [ready_of, lambda references, wait_s: wait_for(references, wait_s, "a step")])
def test_the_watchdog_ends_a_wait_of_ray(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait: Callable[[Sequence[Any], float], object]
) -> None:
    monkeypatch.setattr(ready.ray, "wait", never_ready)
    monkeypatch.setattr("grpo.run.watchdog.ray_processes.holding_up", lambda references: set())
    began = time.monotonic()
    with (
        driving() as activity,
        pytest.raises(Stalled, match=r"nothing has moved for .* in phase 'learn'"),
        Watchdog(Settings(stall_s=0.2, action="restart"), tmp_path, activity, print, start_s=0.2),
    ):
        activity.time(Phase.LEARN)
        wait([object()], 30.0)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    "call",
    [
        lambda: ready_of([object()], 0.0),
        lambda: values_of([object()], 0.0),  # type: ignore[list-item]
        lambda: next_of(iter([1])),
    ],
)
def test_an_interruption_inside_ray_is_raised_when_ray_returns(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]
) -> None:
    returned = []

    def interrupted(result: object) -> Callable[..., object]:
        def call_of_ray(*arguments: object, **options: object) -> object:
            in_c(lambda: os.kill(os.getpid(), signal.SIGUSR2))
            returned.append(result)
            return result

        return call_of_ray

    monkeypatch.setattr(ready.ray, "wait", interrupted(([], [1])))
    monkeypatch.setattr(ready.ray, "get", interrupted([1]))
    monkeypatch.setattr(ready, "next", interrupted(1), raising=False)
    with driving() as activity:
        before = signal.signal(signal.SIGUSR2, lambda number, frame: activity.interrupt(end))
        try:
            with pytest.raises(Stalled):
                call()
        finally:
            signal.signal(signal.SIGUSR2, before)
    assert len(returned) == 1


def test_an_interruption_waits_for_the_outermost_block_and_replaces_its_error() -> None:
    activity, passed = Activity(), []
    with pytest.raises(Stalled) as raised, activity.uninterrupted():
        with activity.uninterrupted():
            activity.interrupt(end)
        passed.append("the inner block")
        raise TimeoutError("an actor was killed")
    assert passed and isinstance(raised.value.__context__, TimeoutError)
    with activity.uninterrupted():
        passed.append("raised once only")
    with pytest.raises(Stalled):
        activity.interrupt(end)


def test_a_wait_ends_with_the_number_of_results_that_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def of_three(
        references: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        looks.append((num_returns, timeout, fetch_local))
        count = len(looks)
        return references[:count], references[count:]

    monkeypatch.setattr(ready.ray, "wait", of_three)
    assert ready_of([1, 2, 3], 60.0, count=2, fetch=False) == ([1, 2], [3])
    assert looks == [(2, ready.SLICE_S, False)] * 2
    looks.clear()
    assert ready_of((1, 2, 3), 0.0) == ([1], [2, 3])
    assert looks == [(3, 0.0, True)]
    assert ready_of([], 60.0) == ([], [])


def test_a_wait_raises_an_error_although_other_results_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_only(references: list[Any], **options: object) -> tuple[list[Any], list[Any]]:
        return [each for each in references if each == 2], [each for each in references if each != 2]

    def fail(references: list[Any], timeout: float) -> list[Any]:
        raise ready.ray.exceptions.RayTaskError("call", "traceback", ValueError("a bad batch"))

    monkeypatch.setattr(ready.ray, "wait", second_only)
    monkeypatch.setattr(ready.ray, "get", fail)
    with pytest.raises(ValueError, match="a bad batch"):
        wait_for([1, 2], 60.0, "a step")  # type: ignore[list-item]


def test_no_other_file_blocks_in_ray() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "grpo").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("ray.get", "ray.wait")
    }
    assert users == {"grpo/cluster/ready.py"}
