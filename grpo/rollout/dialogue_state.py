"""Convert the dialogue of a conversation to plain data and tensors, for a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from grpo.messages import (
    ChatMessage,
    Continuation,
    ConversationEnd,
    Dialogue,
    MalformedCall,
    ToolCall,
    WorldReward,
)


def dialogue_state(dialogue: Dialogue) -> dict[str, Any]:
    """Return a dialogue as data."""
    reward = dialogue.reward
    return {
        "messages": [message_state(message) for message in dialogue.messages],
        "opening": dialogue.opening,
        "prompt_ids": torch.tensor(dialogue.prompt_ids, dtype=torch.int64),
        "ended": dialogue.ended.value,
        "reason": dialogue.reason,
        # An environment may return NumPy values, so convert them to plain data.
        "score": None if reward.score is None else float(reward.score),
        "parts": {str(name): float(value) for name, value in reward.parts.items()},
        "turns": [float(value) for value in reward.turns],
        "further": [
            {
                "prompt_ids": torch.tensor(part.prompt_ids, dtype=torch.int64),
                "token_ids": torch.tensor(part.token_ids, dtype=torch.int64),
                "logprobs": torch.tensor(part.logprobs, dtype=torch.float64),
                "given": [list(border) for border in part.given],
            }
            for part in dialogue.further
        ],
        "calls": dialogue.calls,
        "failures": dict(dialogue.failures),
        "waited_s": float(dialogue.waited_s),
        "lasted_s": float(dialogue.lasted_s),
        "timed_out": dialogue.timed_out,
    }


def dialogue_from_state(state: Mapping[str, Any]) -> Dialogue:
    """Restore a dialogue from the data of `dialogue_state`."""
    return Dialogue(
        messages=tuple(message_from_state(entry) for entry in state["messages"]),
        opening=state["opening"],
        prompt_ids=tuple(state["prompt_ids"].tolist()),
        ended=ConversationEnd(state["ended"]),
        reason=state["reason"],
        reward=WorldReward(state["score"], state["parts"], tuple(state["turns"])),
        further=tuple(
            Continuation(
                tuple(part["prompt_ids"].tolist()),
                tuple(part["token_ids"].tolist()),
                tuple(part["logprobs"].tolist()),
                tuple((start, stop) for start, stop in part["given"]),
            )
            for part in state["further"]
        ),
        calls=state["calls"],
        failures=state["failures"],
        waited_s=state["waited_s"],
        lasted_s=state["lasted_s"],
        timed_out=state["timed_out"],
    )


def message_state(message: ChatMessage) -> dict[str, Any]:
    """Return a message as data."""
    # The arguments of a call are the policy's words, of any depth; a JSON text is always plain data.
    calls = [
        {"reason": call.reason}
        if isinstance(call, MalformedCall)
        else {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
        for call in message.calls
    ]
    return {"role": message.role, "content": message.content, "calls": calls, "name": message.name}


def message_from_state(entry: Mapping[str, Any]) -> ChatMessage:
    """Restore a message from the data of `message_state`."""
    calls = tuple(
        MalformedCall(call["reason"]) if "reason" in call else ToolCall(call["name"], json.loads(call["arguments"]))
        for call in entry["calls"]
    )
    return ChatMessage(entry["role"], entry["content"], calls, entry["name"])
