"""A policy that says what a function tells it, in a small chat template with tools; and records around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from conversations.small_chat import PLAIN, small_tokenizer

from grpo.agents.record import AgentLimits, AgentRecord
from grpo.conversation.renderer import ChatRenderer
from grpo.types import Completion, VersionSpan

WITH_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\nCall as <tool_call>: ' }}{%- for tool in tools %}"
    "{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}" + PLAIN
)
LIMITS = AgentLimits(max_turns=8, max_turn_tokens=None, max_tokens=4000, max_context=8000, deadline_s=30.0)
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


def small_renderer(template: str = WITH_TOOLS) -> ChatRenderer:
    return ChatRenderer(small_tokenizer(template))


class ScriptedPolicy:
    """A sampler: `say` gets the text of the prompt, and returns the text of the turn, or None to never answer.

    Attributes:
        requests: (key, prompt tokens, limit of tokens, seed) of each request, in their order.
        given: futures that were handed out.
    """

    def __init__(self, say: Callable[[str], str | None], template: str = WITH_TOOLS) -> None:
        self.say = say
        self.tokenizer = small_tokenizer(template)
        self.requests: list[tuple[int, tuple[int, ...], int, int]] = []
        self.given: list[Future[Completion]] = []
        self._lock = threading.Lock()

    def sample(self, key: int, token_ids: Sequence[int], max_tokens: int, seed: int) -> Future[Completion]:
        future: Future[Completion] = Future()
        with self._lock:
            self.requests.append((key, tuple(token_ids), max_tokens, seed))
            self.given.append(future)
            version = len(self.requests)
        said = self.say(self.text(token_ids))
        if said is not None:
            future.set_result(self.completion(said, max_tokens, version))
        return future

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a turn, oddly cut: a character each, so that a second tokenisation would give other tokens."""
        pieces = [text] if "<" in text else list(text)
        ids = [token for piece in pieces for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return tuple(ids)

    def completion(self, text: str, max_tokens: int = 4000, version: int = 0) -> Completion:
        ids = (*self.ids(text), self.tokenizer.eos_token_id)
        cut = len(ids) > max_tokens
        ids = ids[:max_tokens]
        logprobs = tuple(-(at + 1) / 64 for at in range(len(ids)))
        spans = (VersionSpan(0, len(ids), version),)
        return Completion(ids, logprobs, text, "length" if cut else "stop", spans)


def small_record(renderer: ChatRenderer, seed: int = 0, **limits: Any) -> AgentRecord:
    values = {name: getattr(LIMITS, name) for name in LIMITS.__dataclass_fields__}
    return AgentRecord(renderer, AgentLimits(**(values | limits)), seed)
