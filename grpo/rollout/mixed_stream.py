"""A stream of groups over several streams: each group goes to the stream that plays its row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo.rollout.collector import RequestStream
from grpo.rollout.conversations import Conversations
from grpo.types import Finished, Prompt, Request

# While several streams are at work: seconds between two looks at all of them.
POLL_S = 0.004


class MixedStream:
    """Groups that different streams play, with the interface of a single stream."""

    def __init__(self, streams: Sequence[RequestStream], stream_of: Callable[[Prompt], int]) -> None:
        """Begin without groups.

        Args:
            streams: streams; no other object may use them.
            stream_of: function that returns the number of the stream that plays a prompt.
        """
        self._streams, self._stream_of = streams, stream_of
        self._resumed = [stream for stream in streams if isinstance(stream, Conversations)]

    @property
    def unfinished(self) -> int:
        """Number of submitted groups that are not yet returned."""
        return sum(stream.unfinished for stream in self._streams)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        """Begin to play groups; return at once.

        Args:
            requests: requests with the index and the seed of each group.
            prompts: prompt of each request.

        Raises:
            ValueError: an unfinished group already has one of these indices.
        """
        pairs = list(zip(requests, prompts, strict=True))
        for number, stream in enumerate(self._streams):
            mine = [pair for pair in pairs if self._stream_of(pair[1]) == number]
            if mine:
                stream.submit([request for request, _ in mine], [prompt for _, prompt in mine])

    def under_way(self) -> dict[int, dict[str, Any]]:
        """Return index -> state of the groups under way, without those of programs, which begin anew after a resume."""
        return {group: state for stream in self._resumed for group, state in stream.under_way().items()}

    def expect(self, groups: Mapping[int, Mapping[str, Any]]) -> None:
        """Take the state of groups that will be submitted again; programs ignore theirs."""
        for stream in self._resumed:
            stream.expect(groups)

    def take_resumed(self) -> dict[str, float]:
        """Return metrics of the conversations that were under way at the resume, since the last call."""
        return {name: value for stream in self._resumed for name, value in stream.take_resumed().items()}

    def finished(self, wait: bool = True) -> Finished:
        """Return the groups that finished since the last call.

        Args:
            wait: whether to wait until a group has finished.

        Raises:
            RuntimeError: `wait` is set and no group is unfinished, or a stream cannot go on.
            TimeoutError: no turn was sampled within the deadline of a stream.
        """
        at_work = [stream for stream in self._streams if stream.unfinished]
        if wait and not at_work:
            raise RuntimeError("a wait for a group would never end: no group is under way")
        if wait and len(at_work) == 1:
            return at_work[0].finished()
        while True:
            done = [group for stream in at_work for group in stream.finished(wait=False)]
            if done or not wait:
                return done
            time.sleep(POLL_S)
