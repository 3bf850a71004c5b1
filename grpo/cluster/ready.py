"""Ray's blocking calls, in short slices: between two slices the watchdog can end the run.

Only this module calls `ray.wait` and `ray.get`. While they block, Ray calls the handlers of signals, but it understands
only KeyboardInterrupt and SystemExit there (`check_signals` in Ray's `_raylet.pyx`). After any other exception Ray
continues with the exception set, and fails later with a SystemError in its place. So the watchdog's error waits until
the slice is over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import ray
from ray import ObjectRef

from grpo.cluster import activity

Result = TypeVar("Result")
# Longest call of Ray, in seconds.
SLICE_S = 0.1


def ready_of(
    references: Sequence[Any], timeout_s: float, *, count: int | None = None, fetch: bool = True
) -> tuple[list[Any], list[Any]]:
    """Wait for results of calls; return the references that are ready, and the others, in their order.

    Args:
        references: Ray's references, or streams, all different.
        timeout_s: longest wait, in seconds.
        count: number of results that end the wait; by default all.
        fetch: whether a result is ready only when it is on this node.
    """
    if not references:
        return [], []
    listed = list(references)
    number = len(listed) if count is None else count
    give_up_at = time.monotonic() + timeout_s
    while True:
        slice_s = max(0.0, min(SLICE_S, give_up_at - time.monotonic()))
        with activity.current().uninterrupted():
            ready, late = ray.wait(listed, num_returns=number, timeout=slice_s, fetch_local=fetch)
        if len(ready) >= number or time.monotonic() >= give_up_at:
            return ready, late


def values_of(ready: Sequence[ObjectRef[Result]], timeout_s: float) -> list[Result]:
    """Return the results of references that are ready.

    Raises:
        ray.exceptions.GetTimeoutError: a result could not be read within `timeout_s` seconds.
        Exception: the error of a call, in Ray's wrapper.
    """
    if not ready:
        return []
    with activity.current().uninterrupted():
        return list(ray.get(list(ready), timeout=timeout_s))


def next_of(stream: Any) -> Any:
    """Return the reference to the next item of a stream that is ready.

    Raises:
        StopIteration: the stream has ended.
    """
    with activity.current().uninterrupted():
        return next(stream)
