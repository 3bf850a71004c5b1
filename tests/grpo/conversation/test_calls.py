from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.conversation.calls import CallStyle, _first_line, call_style, calls_in, text_before_calls, written_calls
from grpo.messages import MalformedCall, ToolCall

BAR, BLOCK = "\uff5c", "\u2581"


def deepseek(words: str) -> str:
    return f"<{BAR}tool{BLOCK}{words.replace(' ', BLOCK)}{BAR}>"


def deepseek_call(name: str, arguments: str) -> str:
    return f"{deepseek('call begin')}function{deepseek('sep')}{name}\n```json\n{arguments}\n```{deepseek('call end')}"


def written(style: CallStyle, calls: list[tuple[str, dict[str, object]]]) -> str:
    """The calls as a policy of the family writes them."""
    if style is CallStyle.HERMES:
        values = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
        return "\n".join(f"<tool_call>\n{value}\n</tool_call>" for value in values)
    if style is CallStyle.LLAMA:
        return "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls)
    inside = "\n".join(deepseek_call(name, json.dumps(arguments)) for name, arguments in calls)
    return f"{deepseek('calls begin')}{inside}{deepseek('calls end')}" if calls else ""


NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
ENDS = ("</tool_call>", "```", deepseek("call end"), deepseek("calls end"), "</think>", "<think>")
TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not any(end in text for end in ENDS))
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3))
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(TEXTS, VALUES, max_size=3)), max_size=3)


@given(CALLS)
@pytest.mark.parametrize("style", CallStyle)
def test_calls_come_back_as_they_were_written(style: CallStyle, calls: list[tuple[str, dict[str, object]]]) -> None:
    expected = tuple(ToolCall(name, arguments) for name, arguments in calls)
    assert calls_in(written(style, calls), style) == expected
    thought = "<think>\nNow " + written(style, [("other", {})]) + "\n</think>\n\n"
    assert calls_in(thought + written(style, calls), style) == expected


@pytest.mark.parametrize("style", CallStyle)
def test_a_thought_contains_no_calls(style: CallStyle) -> None:
    call = written(style, [("python", {"code": "1"})])
    assert len(calls_in(call, style)) == 1
    assert calls_in("<think>" + call, style) == ()
    assert calls_in(call, style, begins_in_thought=True) == ()
    assert len(calls_in("so</think>" + call, style, begins_in_thought=True)) == 1


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("The sum is 12.", CallStyle.HERMES),
        ("", CallStyle.LLAMA),
        ('{"answer": 12}', CallStyle.LLAMA),
        ('I would write {"name": "python", "parameters": {}}', CallStyle.LLAMA),
        ("{not json", CallStyle.LLAMA),
        ("```json\n{}\n```", CallStyle.DEEPSEEK),
    ],
)
def test_other_text_is_no_call(text: str, style: CallStyle) -> None:
    assert calls_in(text, style) == ()


def test_llama_writes_programs_and_calls_after_its_tag() -> None:
    assert calls_in("<|python_tag|>print(1 + 1)\n", CallStyle.LLAMA) == (ToolCall("python", {"code": "print(1 + 1)"}),)
    tagged = '<|python_tag|>{"parameters": {"q": "x"}, "name": "search"}'
    assert calls_in(tagged, CallStyle.LLAMA) == (ToolCall("search", {"q": "x"}),)
    both = '{"name": "a", "parameters": {}}; {"name": "b", "arguments": {"x": 1}}'
    assert calls_in(both, CallStyle.LLAMA) == (ToolCall("a", {}), ToolCall("b", {"x": 1}))


HERMES_MISTAKES = {
    '{"name": "f", "arguments": {}}': "it has no </tool_call>",
    "{'name': 'f', 'arguments': {}}</tool_call>": "it is no JSON",
    '__import__("os").system("true")</tool_call>': "it is no JSON",
    "</tool_call>": "it is no JSON",
    '["f", {}]</tool_call>': "it is no JSON object",
    '{"arguments": {}}</tool_call>': "needs the keys 'name' and 'arguments'",
    '{"name": "f"}</tool_call>': "needs the keys 'name' and 'arguments'",
    '{"name": "f", "arguments": "x"}</tool_call>': "its arguments are no JSON object",
    '{"name": "<|im_end|>", "arguments": {}}</tool_call>': "its name is not",
    '{"name": 3, "arguments": {}}</tool_call>': "its name is not",
    '{"name": "f", "arguments": {"x": NaN}}</tool_call>': "NaN is no value of JSON",
    '{"name": "f", "arguments": {"x": -Infinity}}</tool_call>': "-Infinity is no value of JSON",
    '{"name": "f", "arguments": {"x": 1e999}}</tool_call>': "a number that is too large",
    '{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>': "half of a surrogate pair",
    '{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>": "it is no JSON",
    '{"name": "f", "arguments": {"x": ' + "[" * 100_000 + "}}</tool_call>": "it is no JSON",
}


@pytest.mark.parametrize("text", HERMES_MISTAKES, ids=lambda text: text[:40])
def test_a_call_that_cannot_be_read_tells_the_policy_why_and_how_to_write_one(text: str) -> None:
    (call,) = calls_in(f"Let me see.\n<tool_call>{text}", CallStyle.HERMES)
    assert isinstance(call, MalformedCall) and HERMES_MISTAKES[text] in call.reason
    assert call.reason.endswith('Write a call as: <tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>')
    assert len(call.reason) < 400


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "f", "parameters": {}} and more', "text follows it"),
        ('{"name": "f", "parameters": {}', "it is no JSON"),
        ('{"name": "f"}', "needs the keys 'name' and 'parameters'"),
        ("<|python_tag|>", "nothing follows"),
        ('<|python_tag|>{"x": 1}', "needs the keys"),
    ],
)
def test_mistakes_of_llama(text: str, reason: str) -> None:
    call = calls_in(text, CallStyle.LLAMA)[-1]
    assert isinstance(call, MalformedCall) and reason in call.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (deepseek("calls begin") + deepseek("calls end"), "follows"),
        (deepseek("calls begin") + deepseek_call("f", "{}"), "the calls have no"),
        (deepseek("calls begin") + deepseek_call("f", "{}")[:-3] + deepseek("calls end"), "it has no"),
        (deepseek("calls begin") + deepseek_call("f", "{") + deepseek("calls end"), "it is no JSON"),
        (deepseek("calls begin") + deepseek_call("f g", "{}") + deepseek("calls end"), "its name is not"),
        (
            deepseek("calls begin") + deepseek_call("f", "{}").replace("function", "program") + deepseek("calls end"),
            "its parts are not where they belong",
        ),
    ],
)
def test_mistakes_of_deepseek(text: str, reason: str) -> None:
    call = calls_in(text, CallStyle.DEEPSEEK)[-1]
    assert isinstance(call, MalformedCall) and reason in call.reason


def test_a_good_call_beside_a_bad_one_is_kept() -> None:
    text = written(CallStyle.HERMES, [("f", {"x": 1})]) + "<tool_call>{</tool_call>"
    good, bad = calls_in(text, CallStyle.HERMES)
    assert good == ToolCall("f", {"x": 1}) and isinstance(bad, MalformedCall)


PIECES = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {}}',
    "{",
    "}",
    '"',
    "<think>",
    "</think>",
    "[" * 2000,
]
PIECES += [
    "<|python_tag|>",
    '{"name": ',
    "; ",
    "\\u0000",
    "NaN",
    "1e999",
    *(deepseek(word) for word in ("sep", "call begin")),
]
PIECES += [
    deepseek("calls begin"),
    deepseek("calls end"),
    deepseek("call end"),
    "function",
    "\n```json\n",
    "```",
    "\ud800",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=12).map("".join))
@pytest.mark.parametrize("style", CallStyle)
def test_no_output_of_a_policy_breaks_the_reader(style: CallStyle, text: str) -> None:
    for call in calls_in(text, style):
        assert isinstance(call, ToolCall) or 0 < len(call.reason) < 500
        if isinstance(call, ToolCall):
            json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode()


def test_the_template_decides_before_the_vocabulary() -> None:
    assert call_style("<tool_call>", ["<|python_tag|>"]) is CallStyle.HERMES
    assert call_style("", ["<|python_tag|>"]) is CallStyle.LLAMA
    assert call_style("", [deepseek("calls begin"), "<|eot_id|>"]) is CallStyle.DEEPSEEK
    assert call_style("", ["<s>"]) is None


@pytest.mark.parametrize("style", CallStyle)
def test_written_calls_are_read_as_the_same_calls(style: CallStyle) -> None:
    calls = (ToolCall("add", {"a": 2, "b": [1, None]}), ToolCall("look.up", {"text": 'a "quoted"\nword \u00e9'}))
    text = written_calls(calls, style)
    assert calls_in(text, style) == calls and text_before_calls(text, style) == ""
    if style is not CallStyle.LLAMA:
        thought = "<think>a <tool_call> of none</think>Let me see.\n"
        assert calls_in(thought + text, style) == calls and text_before_calls(thought + text, style) == thought


def test_a_reason_is_at_most_120_characters_of_its_first_line() -> None:
    assert _first_line(ValueError("a\nb")) == "a" and _first_line(ValueError("x" * 500)) == "x" * 120
