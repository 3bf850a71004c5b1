"""The part of `grpo check` that plays a conversation: with the run's tools, environment or program, without a policy.

A stand-in speaks in place of the policy: it calls each tool once, and then answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from grpo import config
from grpo.conversation.calls import written_calls
from grpo.conversation.renderer import ChatRenderer
from grpo.messages import ChatMessage, ConversationEnd, Dialogue, ToolCall
from grpo.planning.first_prompt import print_lines
from grpo.policy.stored import local_or_hub
from grpo.run.streams import Streams, check_prompts
from grpo.terminal import literal
from grpo.types import Completion, Finished, Prompt, Request, SamplingParams, VersionSpan

# What the stand-in says when it has called each tool.
ANSWER = "1"
# Arguments of its calls, by the type in the tool's schema.
_VALUES: Mapping[str, Any] = {
    "string": "1+1",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}
_SHOWN = 600
# Turns of the conversation, beside those of the config's tools.
_TURNS = 3


class StandIn:
    """A stream of turns that no policy sampled, and the source of this stream."""

    def __init__(self, chat: ChatRenderer, tools: Sequence[Mapping[str, Any]]) -> None:
        """Prepare a call of each tool.

        Args:
            chat: chat template of the policy.
            tools: schemas of the tools.
        """
        self._chat, self._turns, self._waiting = chat, 0, list[Request]()
        self._texts = [text for tool in tools if (text := self._call(tool["function"]))]

    def stream(self, sampling: SamplingParams) -> StandIn:
        """Return the stream; there is only a single stream."""
        return self

    @property
    def unfinished(self) -> int:
        """Number of turns that are not yet returned."""
        return len(self._waiting)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        """Take requests."""
        self._waiting += requests

    def finished(self, wait: bool = True) -> Finished:
        """Return a turn for each request."""
        requests, self._waiting = self._waiting, []
        return [(request.index, (self._turn(),)) for request in requests]

    def _turn(self) -> Completion:
        text = self._texts[self._turns] if self._turns < len(self._texts) else ANSWER
        self._turns += 1
        ids = (*self._chat.encode(text), min(self._chat.end_ids))
        return Completion(ids, (0.0,) * len(ids), text, "stop", (VersionSpan(0, len(ids), 0),))

    def _call(self, tool: Mapping[str, Any]) -> str:
        """Return a call in the policy's own form, if its tokenizer can write it; otherwise an empty text."""
        parameters = tool["parameters"]
        names = parameters.get("required", [])
        arguments = {name: _value(parameters["properties"][name]) for name in names}
        if self._chat.calls is None:
            return ""
        short = json.dumps({"name": tool["name"], "arguments": arguments})
        forms = written_calls([ToolCall(tool["name"], arguments)], self._chat.calls), f"<tool_call>{short}</tool_call>"
        return next((text for text in forms if self._chat.decode(self._chat.encode(text)) == text), "")


def show_trial(settings: config.TrainConfig, prompts: Sequence[Prompt], console: Console, *, full: bool) -> None:
    """Play a conversation about the first prompt, and print it.

    Args:
        settings: the run's config, with tools or an environment.
        prompts: all prompts, whose rows are checked.
        console: console to print to.
        full: True to print all of it, however long.

    Raises:
        ValueError: tools, environment, program or chat template cannot be used, or a row does not fit.
        RuntimeError: the conversation fails again and again before its first turn.
    """
    check_prompts(settings, prompts)
    rollout, limits = settings.rollout, settings.conversation
    turns = min(limits.max_turns, len(settings.tools) + _TURNS)
    settings = settings.model_copy(update={"conversation": limits.model_copy(update={"max_turns": turns})})
    with (
        TemporaryDirectory(prefix="grpo-check-") as folder,
        Streams(settings, local_or_hub(settings.policy), rollout.max_prompt_tokens, Path(folder)) as streams,
    ):
        streams.start()
        stand_in = StandIn(streams.chat, streams.tools)
        stream = streams.stream(stand_in, SamplingParams(1, rollout.max_completion_tokens))
        stream.submit([Request(0, prompts[0].token_ids, settings.run.seed)], prompts[:1])
        ((_, (completion,)),) = stream.finished()
        first = streams.chat.decode(completion.prompt_ids(prompts[0]))
    assert completion.dialogue is not None
    tokens = len(completion.prompt_ids(prompts[0]))
    console.print(literal(f"first prompt of a conversation, as the policy reads it ({tokens:,} tokens)", "bold"))
    print_lines(first, _SHOWN, console, full=full)
    console.print(literal("a conversation, in which a stand-in speaks for the policy", "bold"))
    _show(completion.dialogue, console, (turns, limits.max_turns), full=full)


def _show(dialogue: Dialogue, console: Console, turns: tuple[int, int], *, full: bool) -> None:
    for message in dialogue.messages[dialogue.opening :]:
        console.print(literal(f"  {_speaker(message)}", "dim"))
        print_lines(message.content, _SHOWN, console, full=full, mark="> " if message.role == "assistant" else "| ")
    reward = "no reward of an environment" if dialogue.reward.score is None else f"reward {dialogue.reward.score:g}"
    failures = ", ".join(f"{count} {kind}" for kind, count in dialogue.failures.items()) or "none"
    counted = f"{dialogue.calls} calls, failures: {failures}; {reward}; {dialogue.lasted_s:.1f} s"
    line = f"  end: {_end(dialogue, *turns)}; {counted}"
    console.print(literal(line + (f"; {dialogue.reason}" if dialogue.reason else "")))


def _end(dialogue: Dialogue, played: int, allowed: int) -> str:
    """What ended the conversation, of `played` turns at most; a run allows `allowed` turns."""
    if dialogue.ended is not ConversationEnd.TURNS or played == allowed:
        return str(dialogue.ended)
    return f"the check stops after {played} turns; a run goes on up to conversation.max_turns={allowed}"


def _speaker(message: ChatMessage) -> str:
    return {"assistant": "stand-in", "tool": f"tool {message.name}".rstrip()}.get(message.role, message.role)


def _value(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    return _VALUES.get(kind if isinstance(kind, str) else kind[0], "1")
