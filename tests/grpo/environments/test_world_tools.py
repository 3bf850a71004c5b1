"""Tools: what the policy reads when a call succeeds, fails, or is wrong, and which functions are refused."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from types import SimpleNamespace

import pytest

from grpo.environments.results import MOST_CHARACTERS, raised_text, result_text
from grpo.environments.schemas import tool_schemas
from grpo.environments.spec import WorldSpec
from grpo.environments.world import load_world, make_world
from grpo.messages import ChatMessage, MalformedCall, ToolCall

CODE = '''
import asyncio, time
from dataclasses import dataclass
from typing import Literal
import helper_of_my_tools

def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b

async def slow_add(a: int, b: int) -> int:
    """Add two numbers slowly.

    Args:
        a: First number.
        b: Second number.
    """
    await asyncio.sleep(0)
    return a + b

def give(kind: Literal["bytes", "nothing", "long", "list", "half", "object", "many", "nan"]):
    """Give something.

    Args:
        kind: What to give.
    """
    makers = {"bytes": lambda: b"abc", "nothing": lambda: None, "long": lambda: "x" * 10_000_000,
              "list": lambda: [1, {"a": "\\u00e4"}], "half": lambda: "a\\ud800b", "object": object,
              "many": lambda: list(range(3_000_000)), "nan": lambda: float("inf")}
    return makers[kind]()

def fail(how: str):
    """Fail.

    Args:
        how: How to fail.
    """
    if how == "zero":
        return 1 // 0
    if how == "exit":
        raise SystemExit("bye")
    if how == "file":
        return open("/no/such/place/secret.txt")
    if how == "path":
        raise RuntimeError(f"cannot read {__file__} here")
    if how == "sleep":
        time.sleep(30)
    if how == "swallow":
        try:
            time.sleep(30)
        except Exception:
            return "swallowed"

async def wait(seconds: float):
    """Wait.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)

@dataclass
class Point:
    x: int

def pair(point: tuple[int, int], where: Point, tags: list[str] | None = None) -> str:
    """Take structures.

    Args:
        point: Two numbers.
        where: A point.
        tags: Names.
    """
    return f"{point!r} {where.x} {tags}"

def bash(command: str) -> str:
    """Only say what would run.

    Args:
        command: The command.
    """
    return f"no: {command}"

def untyped(query):
    """Search.

    Args:
        query: Words.
    """

def undocumented(query: str) -> str:
    return query

def no_line(query: str) -> str:
    """Search."""

def many(*queries: str) -> str:
    """Search."""

def strange(query: object()) -> str:
    """Search."""

class Holder:
    """A class."""

call_me = helper_of_my_tools.Called()
nameless = lambda: 1
'''
HELPER = "class Called:\n    def __call__(self, a: int) -> int:\n        return a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("user")
    (place / "my_tools.py").write_text(CODE)
    (place / "helper_of_my_tools.py").write_text(HELPER)
    return place


def world_of(folder, *names, **settings):
    spec = WorldSpec(tuple(f"my_tools.py:{name}" for name in names), folder=str(folder), **settings)
    return make_world(spec, {})


def said(world, name, arguments):
    """Let the policy make one call; return the text and the kind of failure."""
    answer = world.answer(ChatMessage("assistant", "...", (ToolCall(name, arguments),)))
    (message,) = answer.messages
    assert (message.role, message.name, answer.calls) == ("tool", name, 1)
    kinds = list(answer.failures.items())
    assert all(count == 1 for _, count in kinds)
    return message.content, kinds[0][0] if kinds else ""


def test_results_come_in_the_order_of_the_calls(folder) -> None:
    world = world_of(folder, "add", "slow_add")
    calls = (
        ToolCall("add", {"a": 2}),
        MalformedCall("Your call cannot be read."),
        ToolCall("slow_add", {"a": 2, "b": 40}),
        ToolCall("sub", {}),
    )
    answer = world.answer(ChatMessage("assistant", "...", calls))
    assert [(each.role, each.name, each.content) for each in answer.messages] == [
        ("tool", "add", "3"),
        ("tool", "", "Your call cannot be read."),
        ("tool", "slow_add", "42"),
        ("tool", "sub", "error: no tool is called 'sub'; the tools are: add, slow_add"),
    ]
    assert (answer.calls, answer.over, answer.reward) == (4, False, None)
    assert answer.failures == {"malformed": 1, "unknown_tool": 1}


def test_a_turn_without_calls_needs_no_answer(folder) -> None:
    world = world_of(folder, "add")
    assert world.open({}).messages == ()
    answer = world.answer(ChatMessage("assistant", "It is 3."))
    assert (answer.messages, answer.calls, answer.over) == ((), 0, False)
    assert world.close().score is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "add: a is missing. It takes a (int), b (int, optional)"),
        ({"a": "2"}, "a: input should be a valid integer"),
        ({"a": 2, "c": 1}, "c is unknown"),
        ({"a": True}, "a: input should be a valid integer"),
        ({"a": 2.5}, "a: "),
        ({"a": None}, "a: input should be a valid integer"),
        ({"a": 2, "\ud800": 1}, "add: "),
        ({"a": 2, "k" * 1_000_000: 1}, "k" * 80 + " is unknown"),
    ],
)
def test_wrong_arguments_are_a_sentence_for_the_policy(folder, arguments, text) -> None:
    said_text, kind = said(world_of(folder, "add"), "add", arguments)
    assert said_text.startswith("error: ") and text in said_text and len(said_text) < 1_000
    assert kind == "bad_arguments"


def test_arguments_become_the_types_of_the_function(folder) -> None:
    arguments = {"point": [1, 2], "where": {"x": 3}, "tags": ["a"]}
    assert said(world_of(folder, "pair"), "pair", arguments) == ("(1, 2) 3 ['a']", "")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("zero", "error: ZeroDivisionError: integer division or modulo by zero"),
        ("exit", "error: SystemExit: bye"),
        ("file", "error: FileNotFoundError: No such file or directory"),
        ("path", "error: RuntimeError: cannot read my_tools.py here"),
    ],
)
def test_a_tool_that_raises_tells_the_policy_no_path(folder, how, text, monkeypatch) -> None:
    # A user's file may lie outside all folders that Python knows.
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/nowhere")
    assert said(world_of(folder, "fail"), "fail", {"how": how}) == (text, "raised")


def test_a_message_of_an_exception_is_cut_and_has_no_module() -> None:
    assert raised_text(json.JSONDecodeError("bad", "x", 0)) == "JSONDecodeError: bad: line 1 column 1 (char 0)"
    assert len(raised_text(ValueError("x" * 5_000_000))) < 3_000
    noted = ValueError("two\nlines")
    noted.add_note("a note for developers")
    assert raised_text(noted) == "ValueError: two\nlines"
    with pytest.raises(SyntaxError) as caught:
        compile("1 +", "/home/somebody/tool.py", "exec")
    assert raised_text(caught.value) == "SyntaxError: invalid syntax"


def test_an_exception_that_cannot_be_written_is_still_an_answer() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "Nasty" in raised_text(Nasty())


@pytest.mark.parametrize(
    ("kind", "text", "failure"),
    [
        ("bytes", "error: the tool returned bytes, which is no text", "raised"),
        ("object", "error: the tool returned object, which is no text", "raised"),
        ("nothing", "(no result)", ""),
        ("list", '[1, {"a": "\u00e4"}]', ""),
        ("half", "a\ufffdb", ""),
        ("nan", "Infinity", ""),
    ],
)
def test_what_tools_return_becomes_text(folder, kind, text, failure) -> None:
    assert said(world_of(folder, "give"), "give", {"kind": kind}) == (text, failure)


@pytest.mark.parametrize("kind", ["long", "many"])
def test_a_long_result_is_cut(folder, kind) -> None:
    text, failure = said(world_of(folder, "give"), "give", {"kind": kind})
    assert failure == "" and text.endswith("(cut: the result has more than 1,000,000 characters)")
    assert MOST_CHARACTERS < len(text) < MOST_CHARACTERS + 100


def test_the_bound_counts_every_character() -> None:
    for value, text in (([1, 2], "[1, 2]"), ("\u00e4bcdef", "\u00e4bcdef"), (123456, "123456")):
        assert result_text(value, 6) == text
        assert result_text(value, 5) == f"{text[:5]}\n... (cut: the result has more than 5 characters)"


def test_many_long_results_share_the_bound(folder) -> None:
    calls = tuple(ToolCall("give", {"kind": "long"}) for _ in range(50))
    answer = world_of(folder, "give").answer(ChatMessage("assistant", "...", calls))
    assert sum(len(each.content) for each in answer.messages) < 1.1 * MOST_CHARACTERS


def test_a_circle_and_a_key_that_is_no_text_are_refused() -> None:
    circle: list[object] = []
    circle.append(circle)
    for value in (circle, {(1, 2): 3}, {"a": b"b"}):
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            result_text(value)


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert result_text({"a": numpy.int64(3), "b": numpy.float32(0.5)}) == '{"a": 3, "b": 0.5}'
    assert result_text(numpy.float32(0.5)) == "0.5"


@pytest.mark.parametrize(("tool", "arguments"), [("fail", {"how": "sleep"}), ("fail", {"how": "swallow"})])
def test_a_slow_tool_is_interrupted_and_the_conversation_continues(folder, tool, arguments) -> None:
    world, start = world_of(folder, tool, "add", tool_deadline_s=0.2), time.monotonic()
    handler = signal.getsignal(signal.SIGALRM)
    assert said(world, tool, arguments) == (f"error: {tool} took longer than 0.2 seconds", "timeout")
    assert time.monotonic() - start < 5
    assert said(world, "add", {"a": 1}) == ("2", "")
    time.sleep(0.3)  # No alarm comes later.
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_slow_async_tool_is_cancelled(folder) -> None:
    world = world_of(folder, "wait", "slow_add", tool_deadline_s=0.1)
    assert said(world, "wait", {"seconds": 30}) == ("error: wait took longer than 0.1 seconds", "timeout")
    assert said(world, "slow_add", {"a": 1, "b": 1}) == ("2", "")


def test_all_calls_of_a_turn_share_the_deadline(folder) -> None:
    world, start = world_of(folder, "wait", "add", tool_deadline_s=0.3), time.monotonic()
    calls = (*(ToolCall("wait", {"seconds": 0.2}) for _ in range(20)), ToolCall("add", {"a": 1}))
    answer = world.answer(ChatMessage("assistant", "...", calls))
    assert time.monotonic() - start < 2
    assert answer.failures == {"timeout": 20}
    assert answer.messages[-1].content.startswith("error: add took longer")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("untyped", "the argument 'query' has no type; write for example query: str"),
        ("undocumented", "has no docstring"),
        ("no_line", "no description for the argument 'query'.* under 'Args:'"),
        ("many", r"takes \*queries: 'str'|takes \*queries: str"),
        ("strange", "has a type that arguments in JSON cannot have|cannot be read"),
        ("Holder", "is a class; name a function, or put the class into `environment`"),
        ("call_me", "is an object of Called; write a function"),
        ("nameless", "has the name '<lambda>'"),
        ("ad", "did you mean 'add'"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(folder, name, text) -> None:
    with pytest.raises(ValueError, match=text):
        tool_schemas(WorldSpec((f"my_tools.py:{name}",), folder=str(folder)))


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (("missing.py:f",), "the file '.*missing.py' does not exist"),
        (("my_tools.py",), "names a file but no function in it"),
        (("pyhton",), "is not built in; did you mean 'python'. known: python, bash; or give package.module:function"),
        (("missing.py",), "is not built in"),
        (("my_tools.py:",), "names a file but no function in it"),
        (("os:system",), "standard library"),
        (("my_tools.py:add", "my_tools.py:add"), "has the name of another tool, 'add'"),
    ],
)
def test_wrong_names_of_tools_are_refused(folder, tools, text) -> None:
    with pytest.raises(ValueError, match=text):
        load_world(WorldSpec(tools, folder=str(folder)))


def test_schemas_are_those_of_transformers(folder) -> None:
    add, python = tool_schemas(WorldSpec(("my_tools.py:add", "python"), folder=str(folder)))
    assert add["function"]["parameters"]["required"] == ["a"]
    assert add["function"]["parameters"]["properties"]["b"] == {"type": "integer", "description": "Second number."}
    assert python["function"]["name"] == "python"
    assert list(python["function"]["parameters"]["properties"]) == ["code"]


class Sessions:
    """Stands for the sandbox: keeps what ran."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, dict[str, int]]] = []
        self.ran: list[str] = []
        self.closed = 0

    def __call__(self, name, settings):
        self.opened.append((name, dict(settings)))
        return self

    def run(self, code, most_s):
        self.ran.append(code)
        time.sleep(0.15 if code == "slow" else 0)
        return (
            SimpleNamespace(text="late", failure="timeout") if code == "loop" else SimpleNamespace(text=f"ran {code}")
        )

    def close(self):
        self.closed += 1


def test_sandbox_tools_keep_one_session_for_a_conversation() -> None:
    sessions = Sessions()
    world = make_world(WorldSpec(("python", "bash"), python={"memory_mib": 64}), {}, sessions)
    world.open({})
    assert sessions.opened == []
    assert said(world, "python", {"code": "x = 1"}) == ("ran x = 1", "")
    assert said(world, "python", {"code": "loop"}) == ("late", "timeout")
    assert said(world, "bash", {"command": "ls"}) == ("ran ls", "")
    assert said(world, "bash", {"code": "ls"})[1] == "bad_arguments"
    assert sessions.opened == [("python", {"memory_mib": 64}), ("bash", {})]
    assert sessions.ran == ["x = 1", "loop", "ls"]
    world.close()
    assert sessions.closed == 2


def test_programs_after_the_deadline_of_a_turn_do_not_run() -> None:
    sessions = Sessions()
    world = make_world(WorldSpec(("python",), tool_deadline_s=0.1), {}, sessions)
    calls = tuple(ToolCall("python", {"code": code}) for code in ("slow", "x = 1"))
    answer = world.answer(ChatMessage("assistant", "...", calls))
    assert [each.content for each in answer.messages] == ["ran slow", "error: python took longer than 0.1 seconds"]
    assert (sessions.ran, answer.failures) == (["slow"], {"timeout": 1})


def test_a_sandbox_that_fails_is_no_answer() -> None:
    class Broken(Sessions):
        def run(self, code, most_s):
            raise RuntimeError("the sandbox is gone")

    world = make_world(WorldSpec(("python",)), {}, Broken())
    with pytest.raises(RuntimeError, match="the sandbox is gone"):
        world.answer(ChatMessage("assistant", "...", (ToolCall("python", {"code": "1"}),)))


def test_a_users_function_may_have_the_name_of_a_sandbox_tool(folder) -> None:
    assert said(world_of(folder, "bash"), "bash", {"command": "ls"}) == ("no: ls", "")


def test_sandbox_tools_without_a_sandbox_are_refused() -> None:
    with pytest.raises(ValueError, match="need a sandbox"):
        make_world(WorldSpec(("python",)), {})
