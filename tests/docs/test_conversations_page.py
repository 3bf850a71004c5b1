"""The examples of docs/conversations.md, run as they are written."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from conversations.scripted_policy import LIMITS, ScriptedPolicy, small_renderer
from docs_pages import ROOT, block, blocks
from fake_engines import FakeCluster, FakeGenerators, FakeLearner, FakeStream
from transformers import AutoTokenizer
from typer.testing import CliRunner

from grpo.agents.agents import Agents
from grpo.agents.program import PASSED, AgentProgram
from grpo.cli.app import app
from grpo.config import DatasetConfig, NewPolicyConfig
from grpo.data.rows import load_rows
from grpo.environments.opening import first_messages
from grpo.environments.schemas import tool_schemas
from grpo.environments.spec import EnvironmentSpec, WorldSpec, check_rows
from grpo.environments.world import make_world
from grpo.messages import ChatMessage, ToolCall, WorldReward
from grpo.policy.new import make_policy
from grpo.types import Completion, VersionSpan

PAGE = "conversations.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the page's files."""
    place = tmp_path_factory.mktemp("page")
    for text in blocks(PAGE, "python"):
        if named := re.match(r"# (\w+\.py)\n", text):
            (place / named[1]).write_text(text)
    assert {each.name for each in place.iterdir()} == {"my_agent.py", "my_tools.py", "guess.py", "shop.py"}
    return place


def spec_of(text, folder=""):
    """Return what a block of YAML has as tools and environments."""
    keys = yaml.safe_load(text)
    listed = keys.get("environment", [])
    environments = []
    for each in listed if isinstance(listed, list) else [listed]:
        when = {column: value if isinstance(value, list) else [value] for column, value in each.get("when", {}).items()}
        environments.append(EnvironmentSpec(each["use"], each.get("options", {}), when))
    return WorldSpec(tuple(keys.get("tools", ())), tuple(environments), str(folder))


def said(world, *calls, text=""):
    return [each.content for each in world.answer(ChatMessage("assistant", text, calls)).messages]


def test_the_tool_and_the_table_of_what_the_policy_reads(folder) -> None:
    spec = spec_of(block(PAGE, "yaml", "tools: [python, "), folder)
    assert [each["function"]["name"] for each in tool_schemas(spec)] == ["python", "look_up"]
    world = make_world(spec, {}, lambda name, settings: None)
    page = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    assert said(world, ToolCall("look_up", {"word": "bank", "most": 1})) == ['["the side of a river"]']
    for call in (ToolCall("look_up", {"word": "tree"}), ToolCall("look_up", {}), ToolCall("lookup", {})):
        (text,) = said(world, call)
        assert f"`{text}`" in page


class Caller(FakeStream):
    """Calls the page's tool, and answers when it has read the result. Every other answer is right."""

    def _completions(self, one):
        tokenizer, texts = self.generators.tokenizer, ("<answer>river</answer>", "<answer>tree</answer>")
        read = "the side of a river" in tokenizer.decode(one.request.token_ids)
        call = '<tool_call>{"name": "look_up", "arguments": {"word": "bank"}}</tool_call>'
        text = texts[one.request.seed % 2] if read else call
        ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
        return (Completion(ids, (-1.0,) * len(ids), text, "stop", (VersionSpan(0, len(ids), one.versions[0]),)),)


class Callers(FakeGenerators):
    def stream(self, sampling):
        self.streams.append(Caller(self, sampling))
        return self.streams[-1]


def test_a_stranger_trains_with_the_page_s_tool(folder, tmp_path, monkeypatch) -> None:
    letters = "".join(map(chr, range(32, 127))) + "\n"
    new = NewPolicyConfig(hidden_size=32, layers=1, heads=1, chat=True, alphabet=letters, max_position=1024)
    make_policy(new, [], tmp_path / "policy", seed=0)
    rows = [json.dumps({"prompt": f"What is bank {n}?", "answer": "river"}) for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    shutil.copy(folder / "my_tools.py", tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "run: {folder: run}\npolicy: {path: policy}\ndata: {path: rows.jsonl}\ntools: ['my_tools.py:look_up']\n"
        "verifiers: [{name: answer, use: exact}]\ntrain: {steps: 1}\ncluster: {device: cpu}\n"
        "rollout: {prompts_per_step: 2, group_size: 4, max_prompt_tokens: 500, max_completion_tokens: 300}\n"
    )
    generators = Callers(1024)
    generators.tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    monkeypatch.setattr("grpo.run.training.Cluster", lambda *_: FakeCluster(FakeLearner(), generators))
    monkeypatch.chdir(tmp_path)
    trained = CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, ["train", "mine.yaml"])
    assert trained.exit_code == 0, trained.output
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert step["conversation/calls_mean"] == 1 and step["conversation/turns_mean"] == 2
    assert 0 < step["reward/mean"] < 1 and step["conversation/ended_failed"] == 0


def test_the_game_ends_after_the_tries_of_the_config(folder) -> None:
    spec, row = spec_of(block(PAGE, "yaml", "options: {tries: 4}"), folder), {"answer": "7"}
    world = make_world(spec, row)
    first = first_messages([ChatMessage("user", "Play.")], world.open(row))
    assert [each.content for each in first] == ["Play.\n\nGuess my number. You have 4 tries."]
    for text, answer in (("5", "Too low."), ("9", "Too high, or no number."), ("x", "Too high, or no number.")):
        assert said(world, text=text) == [answer]
    last = world.answer(ChatMessage("assistant", "7"))
    assert (last.messages[0].content, last.over) == ("Right.", True)
    assert world.close() == WorldReward(1.0)


def test_several_environments(folder) -> None:
    spec = spec_of(block(PAGE, "yaml", "kind: guess"), folder)
    rows = [{"kind": "guess", "answer": "7"}, {"kind": "market", "money": 10, "wanted": "tea"}]
    check_rows(spec, [(f"rows:{at}", row) for at, row in enumerate(rows)])
    assert [each["function"]["name"] for each in tool_schemas(spec)] == ["look_up", "buy"]
    world = make_world(spec, rows[1])
    assert world.open(rows[1]).messages == ()
    assert said(
        world, ToolCall("buy", {"thing": "tea", "price": 4}), ToolCall("buy", {"thing": "car", "price": 9})
    ) == [
        "You have tea, and 6 left.",
        "error: ValueError: you have only 6",
    ]
    assert world.close() == WorldReward(1.06, {"bought": 1.0, "saved": 0.06})


def test_the_maze(monkeypatch) -> None:
    text = block(PAGE, "yaml", "environments.maze:questions")
    source = DatasetConfig.model_validate(yaml.safe_load(text)["data"] | {"limit": 4})
    for row in load_rows(source).to_list():
        world = make_world(spec_of(text), row)
        assert world.open(row).messages == ()
        for move in row[source.reference].split():
            said(world, text=move)
        assert world.close() == WorldReward(1.0)


def test_the_tasks_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    text = block(PAGE, "yaml", "use: gym")
    source = DatasetConfig.model_validate(yaml.safe_load(text)["data"] | {"limit": 4})
    for row in load_rows(source).to_list():
        world = make_world(spec_of(text), row)
        world.open(row)
        assert said(world, text="Many.")[0].endswith("Try again; answers left: 1.")
        assert said(world, text=f"<answer>{row[source.reference]}</answer>") == ["Your answer is right."]
        assert world.close() == WorldReward(1.0)


def test_the_conversation_without_a_policy(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(block(PAGE, "python", "make_world("), PAGE, "exec"), names)
    assert names["schemas"][0]["function"]["name"] == "look_up"
    assert names["opening"].messages[0].content.endswith("You have 2 tries.")
    assert names["called"].failures == {"raised": 1}
    assert (names["low"].over, names["right"].over, names["reward"].score) == (False, True, 1.0)


def test_the_agent_plays_and_the_table_lists_its_variables(folder) -> None:
    pytest.importorskip("openai")
    program = AgentProgram(("python", str(folder / "my_agent.py")))
    policy = ScriptedPolicy(lambda prompt: "Five." if "2+3?" in prompt else "What?")
    agents = Agents(program, small_renderer(), policy, limits=LIMITS, temperature=1.0, log_folder=folder)
    try:
        agents.start(5, {"question": "2+3?"})
        ((key, played),) = agents.finished(60.0)
    finally:
        agents.close()
    assert (key, played.text) == (5, "Five.")
    row = next(line for line in (ROOT / "docs" / PAGE).read_text().splitlines() if line.startswith("| `PATH`"))
    assert tuple(re.findall("`([A-Z_]+)`", row)) == PASSED
