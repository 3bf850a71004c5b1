"""A stream of requests to the generators, which share their replicas with other streams. Part of the Ray room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from grpo.cluster.replica import Work
from grpo.types import Finished, Request, SamplingParams

Ask = Callable[[Sequence[Work]], None]
# (list that finished groups are added to, whether to wait until there is one)
Collect = Callable[[Finished, bool], None]


class SampleStream:
    """Requests with the same sampling, handed out as their groups finish."""

    def __init__(self, number: int, sampling: SamplingParams, ask: Ask, collect: Collect) -> None:
        """Begin with no request; `GeneratorGroup.stream` makes streams.

        Args:
            number: number of the stream, which no other stream of the group has.
            sampling: how all requests are sampled.
            ask: deals out work to the replicas.
            collect: hears the replicas.
        """
        self._number = number
        self._sampling = sampling
        self._ask = ask
        self._collect = collect
        self._unfinished: set[int] = set()
        self._finished: Finished = []

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and not yet handed out."""
        return len(self._unfinished)

    def submit(self, requests: Sequence[Request]) -> None:
        """Begin to sample; returns at once.

        Args:
            requests: their indices are the caller's, each unique among those that are unfinished.

        Raises:
            ValueError: an index is in use.
        """
        for request in requests:
            if request.index in self._unfinished:
                raise ValueError(f"request {request.index} is unfinished in this stream; give each an index of its own")
            self._unfinished.add(request.index)
        mine = (replace(request, stream=self._number) for request in requests)
        self._ask([Work(request, self._sampling, self._finished.append) for request in mine])

    def finished(self, wait: bool = True) -> Finished:
        """Groups that finished since the last call, on any replica.

        Args:
            wait: until there is at least one; otherwise there may be none.

        Raises:
            TimeoutError: none came in `rollout.deadline_s`.
            RuntimeError: nothing is unfinished to wait for, or replicas die again and again.
        """
        if wait and not self._unfinished:
            raise RuntimeError("a wait for a group would never end: nothing is unfinished in this stream")
        self._collect(self._finished, wait)
        handed_out = self._finished.copy()
        self._finished.clear()
        self._unfinished.difference_update(index for index, _ in handed_out)
        return handed_out
