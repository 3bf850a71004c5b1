"""Programs that play conversations: with the `openai` client, and those that hang, crash, or never call."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conversations.running import dies, is_running
from conversations.scripted_policy import ADD, CALL, LIMITS, ScriptedPolicy, small_renderer

from grpo.agents.agents import LOG, Agents, Finished
from grpo.agents.program import AgentProgram, BadOutput, Printed, run_program
from grpo.agents.record import AgentLimits
from grpo.environments.contract import WorldFailed
from grpo.messages import ConversationEnd
from grpo.types import Completion

# A client without packages, so that a program starts in a twentieth of a second.
CALLER = """
import json, os, sys, time, urllib.error, urllib.request
row = json.load(sys.stdin)
def call(*messages, **fields):
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages, **fields}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
    request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]
def user(text):
    return {"role": "user", "content": text}
"""


@contextmanager
def agents_of(
    source: str, folder: Path, say: Callable[[str], str | None] = lambda prompt: "Hello.", **options: Any
) -> Iterator[Agents]:
    limits = {name: options.pop(name) for name in list(options) if name in AgentLimits.__dataclass_fields__}
    known = {name: getattr(LIMITS, name) for name in AgentLimits.__dataclass_fields__}
    program = folder / "agent.py"
    program.write_text(source)
    agents = Agents(
        AgentProgram(("python", str(program)), options.pop("passed", ())),
        small_renderer(),
        ScriptedPolicy(say),
        limits=AgentLimits(**(known | limits)),
        temperature=1.0,
        log_folder=folder,
        **options,
    )
    try:
        yield agents
    finally:
        agents.close()


def ends(agents: Agents, number: int, wait_s: float = 60.0) -> dict[int, Finished]:
    ended: dict[int, Finished] = {}
    until = time.monotonic() + wait_s
    while len(ended) < number and time.monotonic() < until:
        ended |= dict(agents.finished(0.2))
    assert len(ended) == number
    return ended


def only_end(source: str, folder: Path, row: dict[str, Any] | None = None, **options: Any) -> Finished:
    with agents_of(source, folder, **options) as agents:
        agents.start(1, row or {}, [{"role": "user", "content": "Hi"}], seed=3)
        return ends(agents, 1)[1]


def failed(ended: Finished) -> tuple[str, str]:
    """Status and reason of a failure; a failure has no score, whatever the program printed."""
    if isinstance(ended, WorldFailed):
        return ended.status, ended.reason
    dialogue = ended.dialogue
    assert dialogue and dialogue.ended is ConversationEnd.FAILED and dialogue.reward.score is None
    return "timeout" if dialogue.timed_out else "error", dialogue.reason


WITH_OPENAI = f"""
import json, sys
from openai import OpenAI
row = json.load(sys.stdin)
client, messages = OpenAI(), [{{"role": "user", "content": row["question"]}}]
tools = [json.loads({json.dumps(ADD)!r})]
while True:
    message = client.chat.completions.create(model="policy", messages=messages, tools=tools).choices[0].message
    messages.append(message)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        numbers = json.loads(call.function.arguments)
        messages.append({{"role": "tool", "tool_call_id": call.id, "content": str(numbers["a"] + numbers["b"])}})
print("noise")
print(json.dumps({{"answer": message.content, "reward": 0.5, "parts": {{"turns": 2}}}}))
"""


def test_a_program_with_the_openai_client_plays(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    ended = only_end(
        WITH_OPENAI,
        tmp_path,
        {"question": "2+3?"},
        say=lambda prompt: "It is 5." if "<tool_response>\n5" in prompt else CALL,
    )
    assert isinstance(ended, Completion)
    dialogue = ended.dialogue
    assert dialogue and (dialogue.ended, dialogue.reason) == (ConversationEnd.OVER, "")
    assert (dialogue.reward.score, dialogue.reward.parts, dialogue.calls) == (0.5, {"turns": 2.0}, 1)
    assert [message.role for message in dialogue.messages] == ["user", "assistant", "tool", "assistant"]
    assert ended.text == "It is 5." and dialogue.further == ()
    assert 0 < dialogue.waited_s <= dialogue.lasted_s
    assert not (tmp_path / LOG).exists()


def test_the_last_turn_is_judged_unless_the_program_prints_an_answer(tmp_path: Path) -> None:
    ended = only_end(CALLER + "call(user('Hi'))\nprint('just words')", tmp_path)
    assert isinstance(ended, Completion) and ended.text == "Hello."
    assert ended.dialogue.reward.score is None  # type: ignore[union-attr]
    ended = only_end(CALLER + "call(user('Hi'))\nprint(json.dumps({'answer': 42}))", tmp_path)
    assert isinstance(ended, Completion) and ended.text == "42"


def test_a_program_gets_its_row_and_few_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MY_SETTING", "mine")
    source = CALLER + (
        "call(user('Hi'))\n"
        "files = [json.load(open(os.environ[name])) for name in ('GRPO_ROW', 'GRPO_MESSAGES')]\n"
        "print(json.dumps({'answer': json.dumps([row, *files, sorted(os.environ), os.environ['TMPDIR']])}))"
    )
    row = {"question": "Wie gro\u00df?", "n": 3}
    ended = only_end(source, tmp_path, row, passed=("MY_SETTING",))
    assert isinstance(ended, Completion)
    own, of_file, messages, names, scratch = json.loads(ended.text)
    assert own == of_file == row and messages == [{"role": "user", "content": "Hi"}]
    assert "MY_SETTING" in names and "WANDB_API_KEY" not in names and "NO_PROXY" in names
    assert not Path(scratch).exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("print('{\"reward\": 1.0}')", "the policy answered no call"),
        (CALLER + "call(user('Hi'))\nprint('{\"reward\": 1.0}')\nsys.exit(3)", "exit code 3"),
        (CALLER + "call(user('Hi'))\nraise KeyError('answer')", "KeyError: 'answer'"),
        ("raise SystemExit('\\x1b[2Jno')", "\u27e8U+001B\u27e9"),
        (CALLER + "call(user('Hi'))\nos.kill(os.getpid(), 9)", "signal 9"),
        (CALLER + "call(user('Hi'))\nprint('{\"reward\": NaN}')", "expected a finite number"),
        (CALLER + "call(user('Hi'))\nprint('{\"reward\": \"1\"}')", "expected a finite number"),
        (CALLER + "call(user('Hi'))\nprint('{\"answer\": [1]}')", "expected text or a number"),
        (CALLER + "call(user('Hi'), temperature=0)", "HTTP Error 400"),
    ],
)
def test_a_failure_is_never_a_score(tmp_path: Path, source: str, words: str) -> None:
    ended = only_end(source, tmp_path)
    status, reason = failed(ended)
    assert status == "error" and words in reason
    assert isinstance(ended, Completion) == ("call(user('Hi'))" in source)
    assert (tmp_path / LOG).read_text().startswith("conversation 1: ") and words in (tmp_path / LOG).read_text()


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    source = CALLER + (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "open(row['pids'], 'w').write(f'{os.getpid()} {child.pid}')\n"
        "call(user('Hi'))\ntime.sleep(300)"
    )
    began = time.monotonic()
    ended = only_end(source, tmp_path, {"pids": str(tmp_path / "pids")}, deadline_s=2)
    assert failed(ended) == (
        "timeout",
        "the agent's program had not ended after 2 s (conversation.deadline_s), and was killed",
    )
    assert time.monotonic() - began < 30
    assert not any(is_running(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_children_do_not_outlive_a_program_that_ends(tmp_path: Path) -> None:
    source = CALLER + (
        "import subprocess\ncall(user('Hi'))\n"
        "print(json.dumps({'answer': subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL).pid}))"
    )
    ended = only_end(source, tmp_path)
    assert isinstance(ended, Completion) and not is_running(int(ended.text))


def test_after_a_limit_any_exit_code_is_that_limit(tmp_path: Path) -> None:
    ended = only_end(CALLER + "call(user('Hi'))\ncall(user('Hi'))", tmp_path, max_turns=1)
    assert isinstance(ended, Completion)
    dialogue = ended.dialogue
    assert dialogue and (dialogue.ended, dialogue.reason) == (ConversationEnd.TURNS, "")
    source = CALLER + (
        "call(user('Hi'))\ntry:\n    call(user('Hi'))\nexcept urllib.error.HTTPError as over:\n"
        "    print(json.dumps({'reward': over.code}))"
    )
    ended = only_end(source, tmp_path, max_turns=1)
    assert isinstance(ended, Completion) and ended.dialogue.reward.score == 410  # type: ignore[union-attr]


def test_many_programs_wait_for_a_place_and_keep_apart(tmp_path: Path) -> None:
    source = CALLER + (
        "said = call(user(str(row['n'])))['content']\nprint(json.dumps({'answer': said, 'reward': row['n']}))"
    )
    with agents_of(
        source, tmp_path, say=lambda prompt: prompt.split("user\n")[1].split("<")[0][::-1], programs=4
    ) as agents:
        for key in range(40):
            agents.start(key, {"n": 100 + key}, seed=key)
        for key, ended in ends(agents, 40).items():
            assert isinstance(ended, Completion), ended
            dialogue = ended.dialogue
            assert dialogue and dialogue.reward.score == 100 + key
            assert ended.text == str(100 + key)[::-1]


def test_an_abandoned_conversation_says_nothing_and_its_program_dies(tmp_path: Path) -> None:
    source = (
        "import json, os, sys, time\nopen(json.load(sys.stdin)['pid'], 'w').write(str(os.getpid()))\ntime.sleep(300)"
    )
    with agents_of(source, tmp_path) as agents:
        files = [tmp_path / f"pid{key}" for key in (0, 1)]
        for key in (0, 1):
            agents.start(key, {"pid": str(files[key])})
        until = time.monotonic() + 20
        while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < until:
            time.sleep(0.01)
        pids = [int(file.read_text()) for file in files]
        agents.abandon(0)
        agents.abandon(7)
        assert dies(pids[0]) and is_running(pids[1])
        assert agents.finished(0.2) == []
        agents.start(0, {"pid": str(files[0])})
    assert not is_running(pids[1])
    with pytest.raises(RuntimeError, match="thread of the agents"):
        agents.finished()


def test_a_command_that_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="'no-such-program' does not exist"):
        AgentProgram(("no-such-program",))
    with pytest.raises(ValueError, match="expected a program and its arguments"):
        AgentProgram(())
    assert AgentProgram(("python",)).environment({})["PATH"].startswith(str(Path(sys.executable).parent))


def test_only_the_end_of_long_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "row").write_text("{}")
    source = "import sys\nfor n in range(40_000): print('x' * 99)\nprint('the end')\nsys.stderr.write('y' * 300_000)"
    ended = asyncio.run(run_program([sys.executable, "-c", source], dict(os.environ), tmp_path / "row", 60))
    assert ended.code == 0 and ended.output.endswith("x\nthe end\n")
    assert len(ended.output) == len(ended.errors) == 64 << 10


@pytest.mark.parametrize("line", ["", "words", "[1]", "3", "null", '{"other": 1}', "{" * 10_000, "[" * 100_000])
def test_other_last_lines_say_nothing(line: str) -> None:
    assert Printed.of(f"before\n{line}\n\n") == Printed()


def test_parts_are_numbers() -> None:
    assert Printed.of('{"reward": true, "parts": {"a": 1}}') == Printed(None, 1.0, {"a": 1.0})
    for parts in ("[1]", '{"a": "x"}', '{"a": 1e999}'):
        with pytest.raises(BadOutput):
            Printed.of(f'{{"parts": {parts}}}')


WITH_AGENTS = """
import asyncio, json, os, sys
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
set_tracing_disabled(True)
@function_tool
def add(a: int, b: int) -> int:
    "Add numbers."
    return a + b
model = OpenAIChatCompletionsModel(os.environ["OPENAI_MODEL"], AsyncOpenAI())
agent = Agent(name="sums", instructions="Use add.", tools=[add], model=model)
result = Runner.run_sync(agent, json.load(sys.stdin)["question"])
print(json.dumps({"answer": result.final_output}))
"""


def test_openai_agents_plays_with_its_tools(tmp_path: Path) -> None:
    """The framework of the package openai-agents, which is no dependency: `pip install openai-agents` for this test."""
    # `agents` alone is also the name of the folder of this file.
    pytest.importorskip("agents.run", reason="openai-agents is not installed")
    ended = only_end(
        WITH_AGENTS,
        tmp_path,
        {"question": "2+3?"},
        say=lambda prompt: "It is 5." if "<tool_response>\n5" in prompt else CALL,
    )
    assert isinstance(ended, Completion), ended
    dialogue = ended.dialogue
    assert dialogue and dialogue.ended is ConversationEnd.OVER and dialogue.further == ()
    assert [message.role for message in dialogue.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert ended.text == "It is 5." and dialogue.calls == 1
