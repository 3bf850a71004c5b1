"""`grpo dpo` from end to end, with a learner that only keeps count."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from grpo.config import DpoConfig
from grpo.config.file import load
from grpo.dpo_loop import dpo as run_dpo
from grpo.report.metrics_log import read_history
from grpo.report.progress import open_progress
from grpo.run import checkpoint
from grpo.run.stored_run import read_run

ROWS = 12


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def rows(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"{number}+1=?", "chosen": str(number + 1), "rejected": "0000"}


@dataclass
class PairLearner(FakeLearner):
    """Its log-probability of a token falls by 0.1 in each step; the one of a zero, as in rejected answers, by 0.2."""

    references: list[list[float]] = field(default_factory=list)
    chosen: float = 0.1
    scored: int = 0

    def step(self, batch: TrainBatch) -> dict[str, float]:
        metrics = super().step(batch)
        microbatches = [each for part in batch.ranks for each in part.microbatches]
        self.references.append([value for each in microbatches for value in each.reference_S.tolist()])  # type: ignore[union-attr]
        told = sum(float(each.targets_T.sum() + each.reference_S.sum()) for each in microbatches)  # type: ignore[union-attr]
        return {**metrics, "loss": told, "rewards/chosen": self.chosen, "rewards/margins": 1.0}

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        assert source == "policy"
        self.scored += 1
        fall = self.optimizer_steps / 10
        return [[-2.0 - fall * (1 + (one.targets_T == self.zero)) for one in rank] for rank in batch.ranks]

    zero: int = 0


def settings_of(folder: Path, policy: Path, dpo: dict[str, Any] | None = None, **run: Any) -> DpoConfig:
    path = folder.parent / f"{folder.name}.yaml"
    section = {"steps": 4, "batch_size": 4, "max_tokens": 20, "checkpoint_every": 2, "evaluate_every": 3}
    values = {
        "run": {"folder": str(folder), **run},
        "policy": {"path": str(policy)},
        "data": {"generator": f"{__name__}:rows", "options": {"count": ROWS}, "validation": 3},
        "dpo": section | (dpo or {}),
        "report": {"trackers": []},
    }
    path.write_text(yaml.safe_dump(values))
    return load(DpoConfig, path)


def dpo(
    settings: DpoConfig, monkeypatch: pytest.MonkeyPatch, learner: PairLearner | None = None
) -> tuple[PairLearner, str]:
    """Run the job; return the learner and what the terminal shows."""
    from transformers import AutoTokenizer

    learner = learner or PairLearner()
    learner.zero = AutoTokenizer.from_pretrained(settings.policy.path).convert_tokens_to_ids("0")
    monkeypatch.setattr("grpo.fine_tuning.Cluster", FakeCluster(learner))
    file = io.StringIO()
    run_dpo(settings, open_progress("DPO", console=Console(file=file, width=400)))
    return learner, file.getvalue()


def steps_of(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics of each step, without the times."""
    return {
        line.step: {
            name: value for name, value in line.metrics.items() if not name.startswith(("time/", "throughput/"))
        }
        for line in read_history(folder).lines
    }


def test_a_run_scores_first_evaluates_and_leaves_a_policy(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "run", policy)
    learner, _ = dpo(settings, monkeypatch)
    assert learner.optimizer_steps == 4 and learner.denominators == [4.0] * 4
    # All answers have the reference scores of the policy before the first step: -2 a token.
    assert {value % 2 for step in learner.references for value in step} == {0.0}
    steps = steps_of(tmp_path / "run")
    assert [step for step, metrics in steps.items() if "eval/rewards/accuracies" in metrics] == [3, 4]
    # A rejected answer has zeros, which fall faster.
    assert steps[3]["eval/rewards/accuracies"] == 1.0 and steps[3]["eval/rewards/margins"] > 0
    assert steps[1]["rewards/margins"] == 1.0 and "learner/rewards/margins" not in steps[1]
    assert (tmp_path / "run" / "policy" / "config.json").is_file()
    summary = str(read_run(tmp_path / "run").summary)
    assert "held-out preference accuracy" in summary and "grpo eval" in summary


def test_a_resumed_run_has_the_metrics_of_an_uninterrupted_run(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(PairLearner):
        def step(self, batch: TrainBatch) -> dict[str, float]:
            if self.optimizer_steps == 3:
                raise RuntimeError("killed")
            return super().step(batch)

    dpo(settings_of(tmp_path / "whole", policy), monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        dpo(settings_of(tmp_path / "killed", policy), monkeypatch, Dies())
    newest = checkpoint.latest(tmp_path / "killed")
    assert newest is not None and newest.step == 2
    resumed, _ = dpo(settings_of(tmp_path / "killed", policy, resume="auto"), monkeypatch)
    # Only the evaluations of steps 3 and 4 score: the reference comes from the checkpoint.
    assert resumed.scored == 2
    assert steps_of(tmp_path / "killed") == steps_of(tmp_path / "whole")


def test_other_data_are_refused_at_a_resume(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpo(settings_of(tmp_path / "run", policy), monkeypatch)
    longer = settings_of(tmp_path / "run", policy, {"steps": 6}, resume="auto")
    data = longer.data.model_copy(update={"validation": 4, "options": {"count": ROWS + 1}})
    with pytest.raises(ValueError, match="reference scores of other rows"):
        dpo(longer.model_copy(update={"data": data}), monkeypatch)


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [({}, "set dpo.sft_weight=1"), ({"sft_weight": 0.5}, "raise dpo.sft_weight=0.5"), ({"chosen_alarm": None}, None)],
)
def test_an_alarm_tells_of_chosen_answers_that_fall(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], remedy: str | None
) -> None:
    settings = settings_of(tmp_path / "run", policy, {"steps": 14, "checkpoint_every": 14, **keys})
    # A reward of -0.3 at beta 0.1 is a fall of 3 nats.
    _, shown = dpo(settings, monkeypatch, PairLearner(chosen=-0.3))
    alarms = re.findall(
        r"step (\d+): the chosen answers have become less likely than at the start, by 3\.0 nats", shown
    )
    assert alarms == (["10"] if remedy else [])
    assert remedy is None or remedy in shown
