"""Sections `tools`, `environment` and `conversation`: what fits, and what is refused before a run starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo.config import TrainConfig
from grpo.config.file import load

JOB: dict[str, Any] = {
    "run": {"folder": "runs/test"},
    "policy": {"path": "policy"},
    "data": {"path": "rows.jsonl"},
    "train": {"steps": 10},
}
NUMERIC = [{"name": "answer", "use": "numeric"}]
AGENT = {"use": "agent", "command": ["python", "my_agent.py"]}


def loaded(folder: Path, **sections: Any) -> TrainConfig:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(JOB | sections)), encoding="utf-8")
    return load(TrainConfig, path, [])


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"environment": {"use": "agent"}}, "use=agent needs a command, for example"),
        ({"environment": AGENT | {"options": {"n": 1}}}, "give the program its arguments in command"),
        ({"environment": [AGENT, {"use": "maze"}]}, "use=agent without `when` plays all rows"),
        ({"environment": AGENT, "tools": ["python"]}, "use=agent without `when` plays all rows"),
        (
            {"environment": {"use": "maze", "command": ["x"]}},
            "'maze' has `command` or `variables`, which only use=agent",
        ),
        ({"environment": {"use": "maze", "variables": ["X"]}}, "'maze' has `command` or `variables`, which only"),
        (
            {"tools": ["python"], "verifiers": [{"name": "world", "use": "environment"}]},
            "takes the reward of an environment, and there is none; add an `environment`",
        ),
        (
            {"verifiers": NUMERIC, "conversation": {"max_turns": 3}},
            "conversation has limits, but there are neither `tools` nor an `environment`",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        loaded(tmp_path, **sections)
    # The other settings fit, so this is the only problem.
    assert str(caught.value).startswith("1 problem in") and problem in str(caught.value)


def test_an_environment_is_a_mapping_or_a_list(tmp_path: Path) -> None:
    maze = {"use": "maze", "options": {"play": "answer"}, "when": {"kind": "maze", "level": [1, 2]}}
    single, listed = loaded(tmp_path, environment=maze), loaded(tmp_path, environment=[maze, {"use": "gym"}])
    assert single.environment == listed.environment[:1]
    assert [each.use for each in listed.environment] == ["maze", "gym"]
    assert single.environment[0].when == {"kind": "maze", "level": (1, 2)}
    assert loaded(tmp_path, environment=AGENT, conversation={"max_turns": 3}).conversation.max_turns == 3


def test_without_verifiers_the_environment_gives_the_reward(tmp_path: Path) -> None:
    (verifier,) = loaded(tmp_path, environment={"use": "maze"}).verifiers
    assert (verifier.name, verifier.use) == ("environment", "environment")
    (verifier,) = loaded(tmp_path, environment={"use": "maze"}, verifiers=NUMERIC).verifiers
    assert verifier.use == "numeric"


def test_tools_alone_need_verifiers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="verifiers is missing"):
        loaded(tmp_path, tools=["python"])
    assert loaded(tmp_path, tools=["python"], verifiers=NUMERIC).tools == ("python",)
