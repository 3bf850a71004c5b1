"""A whole run on several sources, with engines that only keep count."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented_metrics import is_documented
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from rich.console import Console
from tiny_policy import make_tiny_policy

from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.report import run_files
from grpo.report.metrics_log import read_history
from grpo.report.progress import open_progress
from grpo.report.rollout_store import StoredGroup, read_groups
from grpo.run.stored_run import read_run
from grpo.train_loop import train

STEPS = 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def rows(count: int, sign: str) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"{number}{sign}{number}=?", "answer": "1"}


def source(name: str, sign: str, count: int, ratio: float) -> dict[str, Any]:
    return {"name": name, "generator": f"{__name__}:rows", "options": {"count": count, "sign": sign}, "ratio": ratio}


CONFIG: dict[str, Any] = {
    "data": {"sources": [source("plus", "+", 10, 2), source("minus", "-", 6, 1)], "validation": 2},
    "verifiers": [
        {"name": "sum", "use": "numeric", "options": {"find": ["answer_tag"]}, "when": {"data_source": "plus"}},
        {"name": "rest", "use": "exact", "options": {"find": ["answer_tag"]}, "when": {"data_source": "minus"}},
    ],
    "rollout": {"prompts_per_step": 3, "group_size": 4, "max_prompt_tokens": 5, "max_completion_tokens": 20},
    "evaluation": {"every": 3},
    "train": {"steps": STEPS, "checkpoint_every": 2, "keep_best": "eval/accuracy"},
    "report": {"trackers": []},
}


SIGNALS = (
    "data.curriculum.set_aside_unsolved=1",
    "algorithm.supervision=process",
    "algorithm.teacher.path={policy}",
)


def run(folder: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """Run to the end; return what the terminal shows."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(CONFIG | {"run": {"folder": str(folder)}, "policy": {"path": str(policy)}}))
    settings = load(TrainConfig, path, overrides)
    cluster = FakeCluster(FakeLearner(), FakeGenerators(settings.max_sequence_tokens))
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    terminal = io.StringIO()
    train(settings, open_progress("GRPO", console=Console(file=terminal, width=200)))
    return terminal.getvalue()


def groups_of(folder: Path, kind: str = run_files.ROLLOUTS) -> list[list[StoredGroup]]:
    steps = range(1, STEPS + 1) if kind == run_files.ROLLOUTS else (0, 3, 6)
    return [list(read_groups(folder, step, kind)) for step in steps]


def source_of(group: StoredGroup) -> str:
    return group.prompt_id.partition(":")[0]


def test_every_step_has_each_source_in_its_ratio_with_its_verifier_and_metrics(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run(tmp_path / "run", policy, monkeypatch)
    assert "source plus: 8 prompts to train on, 66.7% of the run's prompts" in shown
    assert "minus training: 2 questions are held out for the evaluation (data.validation); 0 rows repeat" in shown
    lines = {line.step: line.metrics for line in read_history(tmp_path / "run").lines}
    judges = {"plus": "sum", "minus": "rest"}
    for step, groups in enumerate(groups_of(tmp_path / "run"), start=1):
        assert Counter(map(source_of, groups)) == {"plus": 2, "minus": 1}
        for name in judges:
            of_source = [rollout for group in groups if source_of(group) == name for rollout in group.rollouts]
            assert {judged.verifier for rollout in of_source for judged in rollout.verdicts} == {judges[name]}
            right = [rollout.verdicts[0].status == "correct" for rollout in of_source]
            metrics = lines[step]
            assert metrics[f"source/{name}/accuracy"] == pytest.approx(sum(right) / len(right))
            assert metrics[f"source/{name}/reward_mean"] == pytest.approx(sum(right) / len(right))
            assert metrics[f"source/{name}/completion_tokens_mean"] == 20.0
            assert metrics[f"source/{name}/groups"] == len(of_source) / 4
            mixed = {group.prompt_id: {each.reward for each in group.rollouts} for group in groups}
            same = [len(rewards) == 1 for id, rewards in mixed.items() if id.startswith(name)]
            assert metrics[f"source/{name}/zero_variance_share"] == pytest.approx(sum(same) / len(same))
    for step in (0, 3, 6):
        parts = [lines[step][f"eval/{name}/accuracy"] for name in judges]
        assert lines[step]["eval/accuracy"] == pytest.approx(sum(parts) / 2)
    assert {name for metrics in lines.values() for name in metrics if not is_documented(name)} == set()
    told = dict(read_run(tmp_path / "run").summary.rows)
    assert told["plus training accuracy"].startswith(f"{lines[1]['source/plus/accuracy']:.3f}")
    assert "eval/accuracy" in told["best policy"]


def test_held_out_questions_are_asked_in_the_evaluation_and_never_trained_on(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run", policy, monkeypatch)
    trained = {group.prompt for groups in groups_of(tmp_path / "run") for group in groups}
    evaluated = [[group.prompt for group in groups] for groups in groups_of(tmp_path / "run", run_files.EVALUATIONS)]
    assert evaluated[0] == evaluated[1] == evaluated[2] and len(set(evaluated[0])) == 4
    # 12 of the 8 questions with a plus that are left, 6 of the 4 with a minus: all, and each source starts over.
    assert len(trained) == 12 and not trained & set(evaluated[0])


@pytest.mark.parametrize(("stop", "more"), [(1, ()), (4, ()), (4, SIGNALS)])
def test_a_resumed_run_trains_on_the_same_groups(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, stop: int, more: tuple[str, ...]
) -> None:
    more = tuple(override.format(policy=policy) for override in more)
    run(tmp_path / "whole", policy, monkeypatch, *more)
    run(tmp_path / "parts", policy, monkeypatch, f"train.steps={stop}", *more)
    run(tmp_path / "parts", policy, monkeypatch, "resume=auto", *more)
    last = read_history(tmp_path / "whole").lines[-1].metrics
    pools = {name: value for name, value in last.items() if name.startswith(("curriculum/", "process/", "teacher/"))}
    assert len(pools) == (14 if more else 0)
    assert sum(value for name, value in pools.items() if name.endswith("_groups")) == (3.0 if more else 0.0)
    assert sum(value for name, value in pools.items() if name.endswith("_prompts")) == (12.0 if more else 0.0)
    assert {name for name in pools if not is_documented(name)} == set()
    assert pools.items() <= read_history(tmp_path / "parts").lines[-1].metrics.items()
    whole, parts = (
        [[(group.prompt_id, group.rollouts) for group in groups] for groups in groups_of(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert json.dumps(whole, default=str) == json.dumps(parts, default=str)


def test_gold_answers_are_judged_in_each_source(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without its mark, no reference of the second source is a number; the first source alone would pass.
    wrong = "data.sources.minus.reference=prompt"
    with pytest.raises(ValueError, match=r"minus training data, verifier 'rest'|minus training data: 4 of 4"):
        run(tmp_path / "run", policy, monkeypatch, wrong, "verifiers.rest.use=numeric")
