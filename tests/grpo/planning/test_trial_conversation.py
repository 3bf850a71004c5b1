"""`grpo check` plays a conversation with the run's own tools, environment or program."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from grpo.config import NewPolicyConfig, TrainConfig
from grpo.config.file import load
from grpo.planning.trial_conversation import show_trial
from grpo.policy.new import make_policy
from grpo.types import Prompt

ROOT = Path(__file__).resolve().parents[3]
WORDS = """
def count(word: str, least: int) -> int:
    '''Count.

    Args:
        word: A word.
        least: Least.
    '''
    return 40 + len(word) + least
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    letters = "".join(map(chr, range(32, 127))) + "\n"
    make_policy(NewPolicyConfig(hidden_size=32, layers=1, heads=1, chat=True, alphabet=letters), [], folder, seed=0)
    return folder


def shown(recipe: str, policy: Path, *overrides: str) -> str:
    settings = load(TrainConfig, ROOT / "configs" / f"{recipe}.yaml", [f"policy.path={policy}", *overrides])
    row = {"prompt": "1+2=?", "answer": "3"}
    prompt = Prompt("rows:0", "1+2=?", (5,), "3", row, messages=({"role": "user", "content": "1+2=?"},))
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_trial(settings, [prompt], console, full=False)
    return console.export_text()


def test_the_stand_in_calls_each_tool(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(WORDS)
    longer = ("rollout.max_completion_tokens=400", "rollout.max_prompt_tokens=100")
    text = shown("tools_quickstart", policy, f"tools=[{tmp_path / 'words.py'}:count]", *longer)
    assert "<|tools|>count(word, least)<end><|user|>1+2=?<end><|assistant|>" in text
    assert '{"name": "count", "arguments": {"word": "1+1", "least": 1}}' in text and "tool count" in text
    # The result of the call, then an answer, which ends the conversation.
    assert "| 44" in text and "end: answer; 1 calls, failures: none; no reward of an environment" in text


def test_an_environment_answers_the_stand_in(policy: Path) -> None:
    text = shown("maze_quickstart", policy, "rollout.max_prompt_tokens=300", "rollout.max_completion_tokens=400")
    assert text.count("Each turn, write one move") == 3 and "failures: none; reward 0" in text
    assert "end: the check stops after 3 turns; a run goes on up to conversation.max_turns=" in text


def test_the_program_of_the_recipe_plays(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(ROOT)
    text = shown("agent_quickstart", policy, "rollout.max_prompt_tokens=100", "rollout.max_completion_tokens=200")
    assert "<|tools|>python(code)<end><|user|>1+2=?<end><|assistant|>" in text and "end: over; 0 calls" in text


def test_a_program_that_fails_is_named(policy: Path) -> None:
    with pytest.raises(RuntimeError, match=r"failed 3 times on prompt rows:0 .* exit code 3"):
        shown("agent_quickstart", policy, "environment.command=[python, -c, raise SystemExit(3)]")
