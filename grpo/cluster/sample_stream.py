"""A stream of requests to the generators. Several streams share the generators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from grpo.cluster.replica import Work
from grpo.types import Finished, Prompt, Request, SamplingParams

Ask = Callable[[Sequence[Work]], None]
# Arguments: list to which finished groups are added; whether to wait for a group.
Collect = Callable[[Finished, bool], None]


class SampleStream:
    """Requests with the same sampling parameters; their groups are returned as they finish."""

    def __init__(self, number: int, sampling: SamplingParams, ask: Ask, collect: Collect) -> None:
        """Begin with no request; `GeneratorGroup.stream` makes streams.

        Args:
            number: unique number of the stream in its group.
            sampling: sampling parameters of all requests.
            ask: function that gives work to the replicas.
            collect: function that collects finished groups from the replicas.
        """
        self._number = number
        self._sampling = sampling
        self._ask = ask
        self._collect = collect
        self._unfinished: set[int] = set()
        self._finished: Finished = []

    @property
    def unfinished(self) -> int:
        """Number of submitted requests whose groups are not yet returned."""
        return len(self._unfinished)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        """Begin to sample for these requests; return at once.

        Args:
            requests: requests. The caller chooses their indices, which must differ among unfinished requests.
            prompts: prompts of the requests. A single turn reads only the tokens of a request.

        Raises:
            ValueError: an unfinished request already has one of these indices.
        """
        for request in requests:
            if request.index in self._unfinished:
                raise ValueError(f"request {request.index} is unfinished in this stream; give each a different index")
            self._unfinished.add(request.index)
        mine = (replace(request, stream=self._number) for request in requests)
        self._ask([Work(request, self._sampling, self._finished.append) for request in mine])

    def finished(self, wait: bool = True) -> Finished:
        """Return the groups that finished since the last call, on any replica.

        Args:
            wait: whether to wait until a group has finished.

        Raises:
            TimeoutError: no group finished within `rollout.deadline_s`.
            RuntimeError: `wait` is set but no request is unfinished, or replicas die again and again.
        """
        if wait and not self._unfinished:
            raise RuntimeError("a wait for a group would never end: this stream has no unfinished request")
        self._collect(self._finished, wait)
        handed_out = self._finished.copy()
        self._finished.clear()
        self._unfinished.difference_update(index for index, _ in handed_out)
        return handed_out
