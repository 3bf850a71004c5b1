"""The streams of a job: what answers the policy decides which, and mistakes in it end a job before it starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conversations.scripted_policy import CALL, WITH_TOOLS
from conversations.scripted_turns import Turns
from conversations.small_chat import small_tokenizer

from grpo.config.conversation import ConversationConfig, EnvironmentConfig
from grpo.messages import ConversationEnd
from grpo.rollout.agent_conversations import AgentConversations
from grpo.rollout.conversations import Conversations
from grpo.run.streams import Streams, check_prompts
from grpo.types import Prompt, Request, SamplingParams

SAMPLING = SamplingParams(samples=2, max_tokens=400)
TOOL = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b
'''


@dataclass(frozen=True)
class Settings:
    tools: tuple[str, ...] = ()
    environment: tuple[EnvironmentConfig, ...] = ()
    conversation: ConversationConfig = field(default_factory=lambda: ConversationConfig(memory_mib=None))


class Generators:
    """Makes the stream `turns`, and remembers its sampling."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.sampling = turns, list[SamplingParams]()

    def stream(self, sampling: SamplingParams) -> Turns:
        self.sampling.append(sampling)
        return self.turns


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with a tokenizer whose chat template shows tools."""
    folder = tmp_path_factory.mktemp("policy")
    small_tokenizer(WITH_TOOLS).save_pretrained(folder)
    yield str(folder)


def prompt(number: int = 0, role: str = "user", **columns: Any) -> Prompt:
    messages = ({"role": role, "content": "2+3?"},)
    return Prompt(f"rows.jsonl:{number}", "2+3?", (1,), None, {"problem": "2+3?"} | columns, messages=messages)


def agent(*command: str) -> EnvironmentConfig:
    return EnvironmentConfig(use="agent", command=command)


def test_single_turns_are_the_generators_own_stream(tmp_path: Path) -> None:
    generators = Generators(Turns(None, []))
    # Nothing answers the policy, so it needs no chat template, and not even a tokenizer.
    with Streams(Settings(), "no policy", 100, tmp_path) as streams:
        streams.start()
        assert not streams.talks and streams.stream(generators, SAMPLING) is generators.turns
    assert generators.sampling == [SAMPLING]


def test_a_tool_of_the_user_answers_the_policy(tmp_path: Path, policy: str) -> None:
    (tmp_path / "my_tools.py").write_text(TOOL)
    turns = Turns(small_tokenizer(WITH_TOOLS), [CALL, "It is 5."])
    generators = Generators(turns)
    settings = Settings(
        (f"{tmp_path / 'my_tools.py'}:add",), conversation=ConversationConfig(memory_mib=None, max_turn_tokens=300)
    )
    with Streams(settings, policy, 1000, tmp_path) as streams:
        streams.start()
        stream = streams.stream(generators, SAMPLING)
        assert isinstance(stream, Conversations)
        stream.submit([Request(3, (1,), 50)], [prompt()])
        ((group, completions),) = stream.finished()
    assert group == 3 and len(completions) == SAMPLING.samples
    for completion in completions:
        dialogue = completion.dialogue
        assert dialogue is not None and dialogue.ended is ConversationEnd.ANSWER and dialogue.calls == 1
        assert [message.content for message in dialogue.messages] == ["2+3?", CALL, "5", "It is 5."]
        # The learner reads what the policy read: the first prompt with the tools.
        assert "Add two numbers." in turns.tokenizer.decode(dialogue.prompt_ids)
        assert completion.prompt_ids(prompt()) == dialogue.prompt_ids == turns.asked[0].token_ids
    # Each turn is a request of its own, within the limit of a turn.
    (sampling,) = generators.sampling
    assert (sampling.samples, sampling.max_tokens) == (1, 300)


# It asks twice, without a package for clients, so that it starts in a twentieth of a second.
PROGRAM = """
import json, os, sys, urllib.request
row, messages = json.load(sys.stdin), [{"role": "user", "content": "2+3?"}]
for question in ("Are you sure?", None):
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
    request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
    answer = json.load(urllib.request.urlopen(request))["choices"][0]["message"]
    messages += [answer, {"role": "user", "content": question}]
"""


def test_a_program_of_the_user_plays_the_conversation(tmp_path: Path, policy: str) -> None:
    (tmp_path / "agent.py").write_text(PROGRAM)
    turns = Turns(small_tokenizer(WITH_TOOLS), ["It is 5."])
    settings = Settings(environment=(agent(sys.executable, str(tmp_path / "agent.py")),))
    with Streams(settings, policy, 1000, tmp_path) as streams:
        streams.start()
        stream = streams.stream(Generators(turns), SAMPLING)
        assert isinstance(stream, AgentConversations)
        stream.submit([Request(3, (1,), 50)], [prompt()])
        ((group, completions),) = stream.finished()
    assert group == 3 and len(completions) == SAMPLING.samples and stream.unfinished == 0
    for completion in completions:
        dialogue = completion.dialogue
        assert dialogue is not None and dialogue.ended is ConversationEnd.OVER
        assert [message.content for message in dialogue.messages] == ["2+3?", "It is 5.", "Are you sure?", "It is 5."]
        # The second call continues the first: its prompt is the tokens so far.
        (start, stop), whole = completion.given[0], (*dialogue.prompt_ids, *completion.token_ids)
        assert whole[: len(dialogue.prompt_ids) + stop] in [request.token_ids for request in turns.asked]
        assert start < stop and completion.sampled_tokens == len(completion.token_ids) - (stop - start)


def test_the_shorter_limit_holds_for_a_turn(tmp_path: Path, policy: str) -> None:
    generators = Generators(Turns(None, []))
    long = ConversationConfig(memory_mib=None, max_turn_tokens=5000)
    with Streams(Settings((), (EnvironmentConfig(use="maze"),), long), policy, 1000, tmp_path) as streams:
        streams.stream(generators, SAMPLING)
    assert generators.sampling[0].max_tokens == SAMPLING.max_tokens


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def add(a, b):\n    return a + b\n", "add"),
        ("import no_such_module\n", "no_such_module"),
        ("def other() -> int:\n    '''Other.'''\n    return 1\n", "add"),
    ],
)
def test_a_broken_tool_is_refused_at_the_start(tmp_path: Path, policy: str, source: str, told: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    tool = f"{tmp_path / 'broken.py'}:add"
    with Streams(Settings((tool,)), policy, 100, tmp_path) as streams, pytest.raises(ValueError) as caught:
        streams.start()
    assert "broken.py" in str(caught.value) and told in str(caught.value)


def test_a_program_that_does_not_exist_is_refused_at_the_start(tmp_path: Path, policy: str) -> None:
    with (
        Streams(Settings(environment=(agent("./no_such_agent"),)), policy, 100, tmp_path) as streams,
        pytest.raises(ValueError, match=r"the agent's program '\./no_such_agent' does not exist, or may not be run"),
    ):
        streams.start()
    with Streams(Settings(environment=(agent("python", "agent.py"),)), policy, 100, tmp_path) as streams:
        streams.start()


@pytest.mark.parametrize("settings", [Settings(("python",)), Settings(environment=(agent("python"),))])
def test_a_policy_without_chat_template_is_refused_at_the_start(tmp_path: Path, settings: Settings) -> None:
    small_tokenizer(None).save_pretrained(tmp_path / "plain")
    with (
        Streams(settings, str(tmp_path / "plain"), 100, tmp_path) as streams,
        pytest.raises(ValueError, match="chat template"),
    ):
        streams.start()


def test_rows_that_do_not_fit_are_refused() -> None:
    maze = EnvironmentConfig(use="maze", when={"kind": "maze"})
    settings = Settings(environment=(maze,))
    check_prompts(settings, [prompt(0, kind="maze"), prompt(1, kind="sum")])
    with pytest.raises(
        ValueError, match=r"row 1 of rows.jsonl has no column 'kind', which the `when` of the environment 'maze'"
    ):
        check_prompts(settings, iter([prompt(0, kind="maze"), prompt(1)]))
    with pytest.raises(ValueError, match="'maze' plays no row"):
        check_prompts(settings, [prompt(0, kind="sum")])
    with pytest.raises(
        ValueError, match=r"row 1 of rows.jsonl: a message has the role 'narrator'; expected one of system, user"
    ):
        check_prompts(Settings(("python",)), iter([prompt(0), prompt(1, role="narrator")]))


ANSWERING = """
import json, os, sys, urllib.request

row = json.load(sys.stdin)
body = {"model": "policy", "messages": [{"role": "user", "content": row["problem"]}]}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode())
request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
request.add_header("Content-Type", "application/json")
urllib.request.urlopen(request).read()
print(json.dumps({"answer": "the program's answer"}))
"""


def test_a_program_plays_its_rows_and_the_tools_play_the_others(tmp_path: Path, policy: str) -> None:
    (tmp_path / "my_tools.py").write_text(TOOL)
    (tmp_path / "my_agent.py").write_text(ANSWERING)
    program = EnvironmentConfig(use="agent", command=("python", str(tmp_path / "my_agent.py")), when={"kind": "agent"})
    settings = Settings((f"{tmp_path / 'my_tools.py'}:add",), (program,))
    streams_of = {"turns": [Turns(small_tokenizer(WITH_TOOLS), texts) for texts in (["Five."] * 9, [CALL, "5"])]}

    class Several:
        def stream(self, sampling: SamplingParams) -> Turns:
            return streams_of["turns"].pop(0)

    prompts = [prompt(0, kind="agent"), prompt(1, kind="tool"), prompt(2, kind="agent")]
    check_prompts(settings, prompts)
    with Streams(settings, policy, 1000, tmp_path) as streams:
        streams.start()
        assert [tool["function"]["name"] for tool in streams.tools] == ["add"]
        stream = streams.stream(Several(), SAMPLING)
        stream.submit([Request(number, (1,), 50) for number in range(3)], prompts)
        done = dict[int, Any]()
        while stream.unfinished:
            done |= dict(stream.finished())
        assert stream.finished(wait=False) == []
        with pytest.raises(RuntimeError, match="no group is under way"):
            stream.finished()
    texts = {group: [completion.text for completion in completions] for group, completions in done.items()}
    assert texts == {0: ["the program's answer"] * 2, 1: ["5"] * 2, 2: ["the program's answer"] * 2}
    assert all(completion.dialogue.calls == 1 for completion in done[1])
