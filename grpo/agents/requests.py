"""What a client asks for in a call of Chat Completions. A call that cannot be honoured exactly is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from grpo.messages import NAME, ChatMessage, Role, ToolCall

# Fields that change nothing about what the policy samples here. Every other field is refused, so that no client
# believes in a setting that has no effect.
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "seed", "service_tier", "prompt_cache_key", "prompt_cache_retention"}
    | {"safety_identifier", "reasoning_effort", "verbosity", "prediction"}
)
# Field -> values that mean what this server does anyway.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stop": ([], ""),
    "functions": ([],),
    "function_call": ("auto", "none"),
}
_READ = frozenset({"model", "messages", "tools", "tool_choice", "stream", "stream_options", "temperature"})
_LENGTHS = ("max_completion_tokens", "max_tokens")
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class RefusedCall(Exception):
    """A call that the server does not answer.

    Attributes:
        message: sentence for the client: what was expected, what came, what to do.
        status: HTTP status.
        code: short name of the problem, as OpenAI's errors have.
        field: field of the call that is wrong; None if no single field is.
    """

    def __init__(self, message: str, status: int = 400, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.field = message, status, code, field


@dataclass(frozen=True, slots=True)
class AgentCall:
    """A call that the server can answer.

    Attributes:
        messages: the messages. Results of tools stand in the order of the calls that they answer.
        tools: schemas of the tools.
        max_tokens: largest length of the answer, in tokens; None for the limit of the conversation.
        reads_calls: whether tool calls in the answer are read; if not, they stay text.
        stream: whether the answer comes as server-sent events.
        counts: whether the stream ends with the numbers of tokens.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int | None = None
    reads_calls: bool = False
    stream: bool = False
    counts: bool = False

    @property
    def tool_names(self) -> frozenset[str]:
        """Names of the tools that the client offers."""
        return frozenset(tool["function"]["name"] for tool in self.tools)


def read_call(body: bytes, model: str, temperature: float) -> AgentCall:
    """Read the body of a call.

    Args:
        body: body of the HTTP request.
        model: name of the policy. A call of another model is refused.
        temperature: temperature of the run. A call with another temperature is refused.

    Raises:
        RefusedCall: the call is no JSON, or asks for what this server does not do.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise RefusedCall(f"the body of the call is no JSON: {str(problem)[:200]}") from problem
    if not isinstance(given, dict):
        raise RefusedCall(f"the body of the call is a JSON {type(given).__name__}; expected an object")
    # Clients write null for a field that they leave out.
    given = {name: value for name, value in given.items() if value is not None}
    _require_model(given.get("model"), model)
    _require_known(given)
    _require_temperature(given.get("temperature", temperature), temperature)
    tools = _tools(given.get("tools", []))
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        _refuse(
            "tool_choice",
            choice,
            "'auto' or 'none': the policy decides whether to call a tool, because forced tokens would not be its own",
        )
    options = given.get("stream_options", {})
    return AgentCall(
        messages=_messages(given.get("messages")),
        tools=tools,
        max_tokens=_max_tokens(given),
        reads_calls=bool(tools) and choice == "auto",
        stream=_flag("stream", given.get("stream", False)),
        counts=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _refuse(field: str, value: Any, expected: str, code: str | None = None) -> NoReturn:
    raise RefusedCall(f"{field}={json.dumps(value)[:200]} is not possible here; expected {expected}", 400, code, field)


def _require_model(given: Any, model: str) -> None:
    if given != model:
        raise RefusedCall(
            f"this server serves only the policy of the run, under the name {model!r} (OPENAI_MODEL); got model="
            f"{json.dumps(given)[:200]}. Use another base URL and key for another model",
            404,
            "model_not_found",
            "model",
        )


def _require_known(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _ONLY:
            if value not in _ONLY[name]:
                known = ", or ".join(json.dumps(only) for only in _ONLY[name])
                _refuse(name, value, f"{known}; leave the field out, and the policy samples and ends as in training")
        elif name not in _READ and name not in _LENGTHS and name not in _WITHOUT_EFFECT:
            raise RefusedCall(
                f"the field {name!r:.100} is not known here; leave it out, because what it asks for would have no "
                "effect on the policy",
                400,
                "unknown_parameter",
                name[:100],
            )


def _require_temperature(given: Any, temperature: float) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float) or abs(given - temperature) > 1e-6:
        _refuse(
            "temperature",
            given,
            f"{temperature:g}, or leave the field out: training is on-policy, so every token is sampled at the run's "
            "temperature (rollout.temperature)",
        )


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    limits = {name: given[name] for name in _LENGTHS if name in given}
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            _refuse(name, value, "a whole number of tokens, at least 1")
    return min(limits.values()) if limits else None


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")
    return value


def _tools(given: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(given, list):
        _refuse("tools", given, "a list of functions")
    tools = []
    for tool in given:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict):
            _refuse("tools", tool, 'tools of the form {"type": "function", "function": {...}}')
        if not isinstance(function.get("name"), str) or not NAME.fullmatch(function["name"]):
            _refuse("tools", function.get("name"), "names of 1 to 64 letters, digits, '_', '.' or '-'")
        kept = {name: value for name, value in function.items() if value is not None and name != "strict"}
        tools.append({"type": "function", "function": kept})
    return tuple(tools)


def _messages(given: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(given, list) or not given:
        _refuse("messages", given, "a list of at least one message")
    messages: list[ChatMessage] = []
    # Place and name of each call of the last turn, by its id.
    ids: dict[str, tuple[int, str]] = {}
    results: list[tuple[int, ChatMessage]] = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        sender = message.get("role") if isinstance(message, dict) else None
        if not isinstance(sender, str) or sender not in _ROLES:
            _refuse(f"{where}.role", sender, f"one of {', '.join(_ROLES)}")
        role, content = _ROLES[sender], _text(message.get("content"), where)
        if role == "tool":
            place, name = ids.get(str(message.get("tool_call_id")), (len(ids), ""))
            results.append((place, ChatMessage(role, content, name=name)))
            continue
        messages += _in_order(results)
        results = []
        if role == "assistant":
            calls, ids = _calls(message, where)
            messages.append(ChatMessage(role, content, calls=calls))
        else:
            messages.append(ChatMessage(role, content))
    messages += _in_order(results)
    if messages[-1].role == "assistant":
        _refuse("messages", given[-1], "a last message of another role: the policy begins each of its turns itself")
    return tuple(messages)


def _in_order(results: Sequence[tuple[int, ChatMessage]]) -> list[ChatMessage]:
    """Return results of tools in the order of their calls: the policy tells them apart by their places."""
    return [message for _, message in sorted(results, key=lambda result: result[0])]


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    _refuse(f"{where}.content", content, "text, or a list of parts of text: the policy reads nothing else")


def _calls(message: Mapping[str, Any], where: str) -> tuple[tuple[ToolCall, ...], dict[str, tuple[int, str]]]:
    """Return the calls of an assistant's message, and the place and name of each call by its id."""
    if message.get("function_call") is not None:
        _refuse(f"{where}.function_call", message["function_call"], "tool_calls, which replaced function_call")
    given = message.get("tool_calls") or []
    calls = []
    ids: dict[str, tuple[int, str]] = {}
    for call in given if isinstance(given, list) else [given]:
        function = call.get("function") if isinstance(call, dict) else None
        try:
            arguments = json.loads(function["arguments"]) if isinstance(function, dict) else None
            if not isinstance(arguments, dict) or not isinstance(function, dict):
                raise ValueError("no object")
            calls.append(ToolCall(function["name"], arguments))
        except (ValueError, KeyError, TypeError, RecursionError):
            _refuse(f"{where}.tool_calls", call, "calls with the name of a function, and a JSON object as arguments")
        ids[str(call.get("id"))] = (len(ids), calls[-1].name)
    return tuple(calls), ids
