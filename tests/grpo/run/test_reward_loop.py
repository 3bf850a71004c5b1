"""`grpo reward` from end to end, with a learner that only keeps count."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_engines import FakeCluster, FakeLearner
from rich.console import Console
from tiny_policy import make_tiny_policy
from torch import Tensor

from grpo.algorithm.minibatches import TrainBatch
from grpo.algorithm.rescoring import ScoringBatch, Source
from grpo.config import RewardConfig
from grpo.config.file import load
from grpo.policy.score_scale import ScoreScale
from grpo.report.metrics_log import read_history
from grpo.report.progress import open_progress
from grpo.reward_loop import reward as run_reward
from grpo.run import checkpoint
from grpo.run.stored_run import read_run


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def rows(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"{number}+1=?", "chosen": str(number + 1), "rejected": "0000"}


@dataclass
class ScoringLearner(FakeLearner):
    """Its score of a token is the length of the sequence up to there, with a sign that changes in the second step."""

    def step(self, batch: TrainBatch) -> dict[str, float]:
        metrics = super().step(batch)
        told = sum(float(each.targets_T.sum()) for part in batch.ranks for each in part.microbatches)
        return {**metrics, "loss": told, "rewards/margins": 1.0}

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        assert source == "policy"
        sign = 1 if self.optimizer_steps < 2 else -1
        return [[sign * (1.0 + one.position_ids_N[one.source_T]) for one in rank] for rank in batch.ranks]


def settings_of(folder: Path, policy: Path, **keys: Any) -> RewardConfig:
    path = folder.parent / f"{folder.name}.yaml"
    values = {
        "run": {"folder": str(folder), **keys},
        "policy": {"path": str(policy)},
        "data": {"generator": f"{__name__}:rows", "options": {"count": 9}, "validation": 3},
        "reward": {"steps": 4, "batch_size": 4, "max_tokens": 20, "checkpoint_every": 2, "evaluate_every": 3},
        "report": {"trackers": []},
    }
    path.write_text(yaml.safe_dump(values))
    return load(RewardConfig, path)


def reward(settings: RewardConfig, monkeypatch: pytest.MonkeyPatch, learner: ScoringLearner | None = None) -> None:
    monkeypatch.setattr("grpo.fine_tuning.Cluster", FakeCluster(learner or ScoringLearner()))
    run_reward(settings, open_progress("REWARD", console=Console(file=io.StringIO(), width=200)))


def steps_of(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step, without the times."""
    return {
        line.step: {
            name: value for name, value in line.metrics.items() if not name.startswith(("time/", "throughput/"))
        }
        for line in read_history(folder).lines
    }


def test_a_run_evaluates_leaves_a_scale_and_resumes_exactly(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(ScoringLearner):
        def step(self, batch: TrainBatch) -> dict[str, float]:
            if self.optimizer_steps == 3:
                raise RuntimeError("killed")
            return super().step(batch)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reward(settings_of(whole, policy), monkeypatch)
    steps = steps_of(whole)
    assert [step for step, metrics in steps.items() if "eval/rewards/accuracies" in metrics] == [3, 4]
    # The better answers are the shorter ones, which the learner prefers after two steps, by three tokens.
    assert steps[4]["eval/rewards/accuracies"] == steps[4]["eval/rewards/length_only_accuracies"] == 1.0
    assert steps[4]["eval/rewards/margins"] == 3.0 and steps[4]["eval/rewards/length_correlation"] == -1.0
    assert 0.4 < steps[4]["eval/rewards/accuracies_low"] < 1.0
    # Five tokens of the question, one or four of the answer, and the end token.
    scale = ScoreScale.read(whole / "policy")
    assert scale is not None and (scale.mean, scale.deviation, scale.answers) == (-8.5, 1.5, 12)
    assert "held-out preference accuracy" in str(read_run(whole).summary)
    with pytest.raises(RuntimeError, match="killed"):
        reward(settings_of(killed, policy), monkeypatch, Dies())
    newest = checkpoint.latest(killed)
    assert newest is not None and newest.step == 2
    reward(settings_of(killed, policy, resume="auto"), monkeypatch)
    assert steps_of(killed) == steps
