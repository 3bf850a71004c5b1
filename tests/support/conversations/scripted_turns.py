"""A stream of requests whose turns are given texts, in place of the generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo.types import Completion, Finished, Prompt, Request, VersionSpan


class Turns:
    """A stream whose turns are texts, which it says in their order to each conversation."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts, self.said = tokenizer, texts, dict[int, int]()
        self.asked: list[Request] = []
        self.pending: list[Request] = []

    @property
    def unfinished(self) -> int:
        return len(self.pending)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        self.asked += requests
        self.pending += requests

    def finished(self, wait: bool = True) -> Finished:
        done, self.pending = self.pending, []
        return [(request.index, (self._completion(request),)) for request in done]

    def _completion(self, request: Request) -> Completion:
        turn = self.said.get(request.index, 0)
        self.said[request.index] = turn + 1
        ids = self.tokenizer(self.texts[turn], add_special_tokens=False)["input_ids"]
        ids = [*ids, self.tokenizer.eos_token_id]
        most = request.max_tokens or len(ids)
        kept = tuple(ids[:most])
        reason = "stop" if most >= len(ids) else "length"
        return Completion(kept, (-0.5,) * len(kept), self.texts[turn], reason, (VersionSpan(0, len(kept), turn),))
