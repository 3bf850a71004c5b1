"""docs/config.md and `grpo config` say what the schema says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.config.reference import Key, markdown, matching, reference

ROOT = Path(__file__).parents[3]


def key(name: str) -> Key:
    (part,) = matching(name)
    (found,) = part.keys
    return found


def leaves(data: Any, name: str = "") -> list[str]:
    if isinstance(data, dict) and data:
        return [leaf for field, value in data.items() for leaf in leaves(value, f"{name}.{field}" if name else field)]
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [leaf for item in data for leaf in leaves(item, f"{name}[]")]
    return [name]


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == markdown(), "run `grpo config --markdown > docs/config.md`"


def test_every_key_of_a_real_configuration_is_told() -> None:
    told = {one.name for part in reference() for one in part.keys}
    told |= {name for part in reference() for name in (part.name, part.name.removesuffix("[]"))}
    config = load(TrainConfig, ROOT / "configs" / "code_quickstart.yaml").model_dump(mode="json")
    # What a user names freely is told by the key that holds it.
    free = [name for name in told if key_kind(name).startswith("mapping")]
    missing = [
        leaf for leaf in leaves(config) if leaf not in told and not any(leaf.startswith(f"{name}.") for name in free)
    ]
    assert missing == []


def key_kind(name: str) -> str:
    return next((one.kind for part in reference() for one in part.keys if one.name == name), "")


def test_values_bounds_and_defaults_are_those_of_the_schema() -> None:
    assert key("rollout.temperature") == Key(
        "rollout.temperature", "number above 0", "1.0", key("rollout.temperature").text
    )
    assert "top-p" in key("rollout.temperature").text
    assert key("learner.zero_stage").kind == "`1`, `2`, `3`"
    assert key("run.folder").default is None
    assert key("evaluation.max_completion_tokens").kind == "integer at least 1 or null"
    assert key("verifiers.0.weight") == key("verifiers[].weight")


def test_a_section_that_only_one_job_has_says_so() -> None:
    texts = {part.name: part.text for part in reference()}
    assert "grpo train" in texts["rollout"] and "grpo sft" in texts["sft"]
    assert "Only `grpo" not in texts["learner"]


def test_a_name_that_is_not_there_is_told_with_the_nearest() -> None:
    # A part of a name is searched.
    assert key("zero_stage").name == "learner.zero_stage"
    with pytest.raises(ValueError, match=r"rollout\.group_size"):
        matching("rollout.groupsize")


def test_the_command_shows_a_part_of_it() -> None:
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["config", "rollout.group_size"])
    assert shown.exit_code == 0
    assert "rollout.group_size: integer at least 1; default 8" in shown.output
    assert "Completions for each prompt." in shown.output
    assert "max_prompt_tokens" not in shown.output
    assert matching("") == list(reference())
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["config", "algorithm.kl"])
    assert "`k3` or `module:function` or `file.py:function`" in shown.output
    assert "k2: d^2 / 2 with d = reference_logprob - logprob; never negative" in shown.output
