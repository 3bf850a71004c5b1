"""Tool calls in the text of a turn. The text is the policy's: it is read as JSON, and never evaluated."""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from grpo.messages import NAME, MalformedCall, ToolCall

Call = ToolCall | MalformedCall


class CallStyle(enum.StrEnum):
    """The way in which a family of policies writes tool calls."""

    HERMES = "hermes"
    LLAMA = "llama"
    DEEPSEEK = "deepseek"


# DeepSeek writes its special tokens with a wide bar (U+FF5C) and a block (U+2581).
_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR = (
    f"<\uff5ctool\u2581{words}\uff5c>"
    for words in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
)
# How to write a call, in messages to the policy.
_FORMS = {
    CallStyle.HERMES: '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>',
    CallStyle.LLAMA: '{"name": "...", "parameters": {...}}',
    CallStyle.DEEPSEEK: f"{_CALLS_BEGIN}{_CALL_BEGIN}function{_SEPARATOR}NAME\n```json\n{{...}}\n```"
    f"{_CALL_END}{_CALLS_END}",
}
_PYTHON_TAG = "<|python_tag|>"
# Llama writes a program after its tag; it stands for a call of this tool with this argument.
PROGRAM_TOOL, PROGRAM_ARGUMENT = "python", "code"


def call_style(chat_template: str, added_tokens: Collection[str]) -> CallStyle | None:
    """Return how a policy writes calls, from its chat template and its added tokens; None if neither tells.

    A template that shows `<tool_call>` decides before the vocabulary: it is what the policy reads in its prompt.
    """
    if "<tool_call>" in chat_template:
        return CallStyle.HERMES
    if _CALLS_BEGIN in added_tokens:
        return CallStyle.DEEPSEEK
    if _PYTHON_TAG in added_tokens or "<|eot_id|>" in added_tokens:
        return CallStyle.LLAMA
    return None


def calls_in(text: str, style: CallStyle, *, begins_in_thought: bool = False) -> tuple[Call, ...]:
    """Return the calls in a sampled turn, in their order.

    Args:
        text: the turn, with its special tokens as text, without the end of the turn.
        style: how the policy writes calls.
        begins_in_thought: whether the prompt of the turn already opened `<think>`. A thought contains no calls.

    Returns:
        The calls. A text that looks like a call but cannot be read becomes a `MalformedCall`, with a sentence for the
        policy. Other text is no call.
    """
    thought, closed, answer = text.partition("</think>")
    if not closed:
        if begins_in_thought or thought.lstrip().startswith("<think>"):
            return ()
        answer = text
    readers = {CallStyle.HERMES: _hermes, CallStyle.LLAMA: _llama, CallStyle.DEEPSEEK: _deepseek}
    return tuple(readers[style](answer))


def text_before_calls(text: str, style: CallStyle) -> str:
    """Return the part of a sampled turn before its calls. The turn has at least one call, and all can be read."""
    thought, closed, answer = text.partition("</think>")
    if not closed:
        thought, answer = "", text
    if style is CallStyle.LLAMA:
        before = answer.partition(_PYTHON_TAG)[0] if _PYTHON_TAG in answer else ""
    else:
        before = answer.partition("<tool_call>" if style is CallStyle.HERMES else _CALLS_BEGIN)[0]
    return thought + closed + before


def written_calls(calls: Sequence[ToolCall], style: CallStyle) -> str:
    """Return calls as the policy writes them, for a history that the policy did not write itself."""
    if style is CallStyle.LLAMA:
        return "; ".join(_written({"name": call.name, "parameters": dict(call.arguments)}) for call in calls)
    if style is CallStyle.HERMES:
        objects = [_written({"name": call.name, "arguments": dict(call.arguments)}) for call in calls]
        return "\n".join(f"<tool_call>\n{written}\n</tool_call>" for written in objects)
    blocks = [
        f"{_CALL_BEGIN}function{_SEPARATOR}{call.name}\n```json\n{_written(dict(call.arguments))}\n```{_CALL_END}"
        for call in calls
    ]
    return _CALLS_BEGIN + "\n".join(blocks) + _CALLS_END


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _hermes(text: str) -> Iterator[Call]:
    """Qwen's and Hermes' format: each call is a JSON object between `<tool_call>` and `</tool_call>`."""
    rest = text
    while (opened := rest.partition("<tool_call>"))[1]:
        body, closed, rest = opened[2].partition("</tool_call>")
        if not closed:
            yield _malformed(CallStyle.HERMES, "it has no </tool_call>")
            return
        yield _object_call(body, CallStyle.HERMES, ("arguments",))


def _llama(text: str) -> Iterator[Call]:
    """Llama 3.1's formats: JSON objects divided by `;`, or a program after `<|python_tag|>`.

    Source: the prompt format of Llama 3.1 in Meta's model documentation.
    """
    _, tag, after_tag = text.partition(_PYTHON_TAG)
    rest = (after_tag if tag else text).strip()
    if not rest.startswith("{"):
        if tag:
            yield (
                _checked(PROGRAM_TOOL, {PROGRAM_ARGUMENT: rest}, CallStyle.LLAMA)
                if rest
                else _malformed(CallStyle.LLAMA, f"nothing follows {_PYTHON_TAG}")
            )
        return
    if not tag and not rest[1:].lstrip().startswith('"name"'):
        return  # An answer in JSON is no call.
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as problem:
            yield _malformed(CallStyle.LLAMA, f"it is no JSON ({_first_line(problem)})")
            return
        yield _value_call(value, CallStyle.LLAMA, ("parameters", "arguments"))
        rest = rest[end:].lstrip()
        if rest and not rest.startswith(";"):
            yield _malformed(CallStyle.LLAMA, "text follows it; write nothing but calls, divided by ';'")
            return
        rest = rest[1:].lstrip()


def _deepseek(text: str) -> Iterator[Call]:
    """DeepSeek V3's format: `function`, the separator, the name, and the arguments as a JSON object in a code block."""
    _, begun, rest = text.partition(_CALLS_BEGIN)
    if not begun:
        return
    inside, ended, _ = rest.partition(_CALLS_END)
    if _CALL_BEGIN not in inside:
        yield _malformed(CallStyle.DEEPSEEK, f"no {_CALL_BEGIN} follows {_CALLS_BEGIN}")
    while (opened := inside.partition(_CALL_BEGIN))[1]:
        body, closed, inside = opened[2].partition(_CALL_END)
        if not closed:
            yield _malformed(CallStyle.DEEPSEEK, f"it has no {_CALL_END}")
            return
        yield _deepseek_call(body)
    if not ended:
        yield _malformed(CallStyle.DEEPSEEK, f"the calls have no {_CALLS_END}")


def _deepseek_call(body: str) -> Call:
    kind, separated, rest = body.partition(_SEPARATOR)
    name, fenced, block = rest.partition("\n```json\n")
    arguments, closed, after = block.rpartition("```")
    if not separated or kind.strip() != "function" or not fenced or not closed or after.strip():
        return _malformed(CallStyle.DEEPSEEK, "its parts are not where they belong")
    value = _json(arguments, CallStyle.DEEPSEEK)
    return value if isinstance(value, MalformedCall) else _checked(name.strip(), value[0], CallStyle.DEEPSEEK)


def _object_call(text: str, style: CallStyle, keys: tuple[str, ...]) -> Call:
    value = _json(text, style)
    return value if isinstance(value, MalformedCall) else _value_call(value[0], style, keys)


def _value_call(value: Any, style: CallStyle, keys: tuple[str, ...]) -> Call:
    if not isinstance(value, dict):
        return _malformed(style, "it is no JSON object")
    key = next((key for key in keys if key in value), keys[0])
    if "name" not in value or key not in value:
        return _malformed(style, f"it needs the keys 'name' and {key!r}")
    return _checked(value["name"], value[key], style)


def _checked(name: Any, arguments: Any, style: CallStyle) -> Call:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return _malformed(style, "its name is not 1 to 64 letters, digits, '_', '.' or '-'")
    if not isinstance(arguments, dict):
        return _malformed(style, "its arguments are no JSON object")
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return _malformed(style, "its arguments have one half of a surrogate pair")
    except (ValueError, RecursionError):  # A number such as 1e999 is read as infinite.
        return _malformed(style, "its arguments have a number that is too large, or are nested too deeply")
    return ToolCall(name, arguments)


def _json(text: str, style: CallStyle) -> tuple[Any] | MalformedCall:
    try:
        return (json.loads(text, parse_constant=_no_constant),)
    except (ValueError, RecursionError) as problem:  # Too many digits, or too many brackets: also the policy's mistake.
        return _malformed(style, f"it is no JSON ({_first_line(problem)})")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def _first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0][:120]


def _malformed(style: CallStyle, problem: str) -> MalformedCall:
    return MalformedCall(f"Your tool call cannot be read: {problem}. Write a call as: {_FORMS[style]}")
