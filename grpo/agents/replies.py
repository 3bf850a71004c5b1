"""What the server answers to a call of Chat Completions: a JSON object, or server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from grpo.agents.requests import RefusedCall
from grpo.messages import ToolCall

Finish = Literal["stop", "length", "tool_calls"]
# OpenAI's names of the kinds of errors, by HTTP status.
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


@dataclass(frozen=True, slots=True)
class AgentReply:
    """The policy's answer to a call.

    Attributes:
        id: name of the answer, unique in the run.
        content: text, without the tool calls.
        calls: tool calls.
        finish: why the answer ended.
        prompt_tokens: number of tokens that the policy read.
        completion_tokens: number of tokens that the policy sampled.
    """

    id: str
    content: str
    calls: tuple[ToolCall, ...]
    finish: Finish
    prompt_tokens: int
    completion_tokens: int


def completed(reply: AgentReply, model: str) -> bytes:
    """Return the JSON object of an answer."""
    # A message without text has null, as OpenAI's has.
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
    if reply.calls:
        message["tool_calls"] = _calls(reply)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
    return _json(_head(reply, model, "chat.completion") | {"choices": [choice], "usage": _usage(reply)})


def streamed(reply: AgentReply, model: str, counts: bool) -> Iterator[bytes]:
    """Return an answer as server-sent events, in the form of OpenAI's chunks.

    The answer is complete before its first event, so a problem is an HTTP status, and never the end of a stream.
    """
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if reply.content else None}]
    if reply.content:
        deltas.append({"content": reply.content})
    deltas += [{"tool_calls": [{"index": at} | call]} for at, call in enumerate(_calls(reply))]
    head = _head(reply, model, "chat.completion.chunk")
    ends: list[str | None] = [None] * len(deltas) + [reply.finish]
    for delta, finish in zip([*deltas, {}], ends, strict=True):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        yield _event(head | {"choices": [choice]})
    if counts:
        yield _event(head | {"choices": [], "usage": _usage(reply)})
    yield b"data: [DONE]\n\n"


def refused(problem: RefusedCall) -> bytes:
    """Return the JSON object of an error."""
    kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    return _json(
        {"error": {"message": problem.message, "type": kind, "param": problem.field, "code": problem.code}},
    )


def models(model: str) -> bytes:
    """Return the list of models."""
    return _json({"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "verigrpo"}]})


def _head(reply: AgentReply, model: str, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": int(time.time()), "model": model}


def _calls(reply: AgentReply) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{reply.id.removeprefix('chatcmpl-')}_{at}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for at, call in enumerate(reply.calls)
    ]


def _usage(reply: AgentReply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.completion_tokens
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": total,
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
