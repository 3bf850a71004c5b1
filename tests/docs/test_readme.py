"""What the README shows must work as it is written there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from grpo.config import TrainConfig
from grpo.config.file import load
from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.verdict import Status

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    assert len(found) == 1, f"{len(found)} {language} blocks contain {containing!r}"
    return str(found[0])


def test_the_data_and_verifier_sections_are_valid_configuration(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    data |= yaml.safe_load(block("yaml", "my/questions.jsonl"))
    data |= yaml.safe_load(block("yaml", "my_verifiers.py"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    config = load(TrainConfig, path)
    assert config.data.template.endswith("\\boxed{}.")
    assert [verifier.name for verifier in config.verifiers] == ["answer", "form"]


def test_the_verifier_of_ones_own_runs_in_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_verifiers.py").write_text(block("python", "my_verifiers.py"))
    monkeypatch.chdir(tmp_path)
    configured = yaml.safe_load(block("yaml", "my_verifiers.py"))["verifiers"]
    specs = [VerifierSpec(one["name"], one["use"], one.get("options", {})) for one in configured]
    with VerifierPool(specs, workers=1) as pool:
        right = pool.submit("answer", "it is 42", "42", {}).result(timeout=30)
        wrong = pool.submit("answer", "it is 41", "42", {}).result(timeout=30)
        shaped = pool.submit("form", "<think>a</think><answer>42</answer>", "42", {}).result(timeout=30)
    assert (right.status, wrong.status, shaped.status) == (Status.CORRECT, Status.WRONG, Status.CORRECT)
    assert right.score == 1.0 and wrong.score == 0.0


def test_every_file_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for config in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / config).is_file(), config
