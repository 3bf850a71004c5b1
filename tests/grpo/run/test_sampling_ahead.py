"""Training while groups of the next steps are sampled, with engines that only keep count."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import silent_progress
from test_jobs import fakes, settings_of
from tiny_policy import make_tiny_policy

from grpo.config import TrainConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.data.drawing.cursor import Cursor
from grpo.data.prompts import load_prompts
from grpo.policy.stored import load_tokenizer
from grpo.report.metrics_log import read_history
from grpo.report.rollout_store import StoredGroup, read_groups, step_path
from grpo.rollout.group_state import group_from_state, group_state
from grpo.rollout.groups import seed_of
from grpo.run import checkpoint
from grpo.train_loop import train as run_training
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

STEPS = 8


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def sums(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"{number // 10}+{number % 10}=?", "answer": str(number % 3)}


def settings(folder: Path, policy: Path, lag: int, resume: str = "never", **algorithm: Any) -> TrainConfig:
    plain = settings_of(folder, policy, resume=resume)
    # Four prompts a step, so that eight steps walk over these thirty-two once.
    return plain.model_copy(
        update={
            "rollout": plain.rollout.model_copy(update={"max_policy_lag": lag}),
            "data": plain.data.model_copy(update={"generator": "test_sampling_ahead:sums", "options": {"count": 32}}),
            "evaluation": plain.evaluation
            and plain.evaluation.model_copy(
                update={
                    "data": plain.evaluation.data.model_copy(update={"generator": "test_sampling_ahead:sums"}),
                    "every": 3,
                }
            ),
            "algorithm": AlgorithmConfig.model_validate({"minibatches": 2, **algorithm}),
            "train": plain.train.model_copy(update={"steps": STEPS}),
        }
    )


def slow_tail(seed: int) -> int:
    """Most are sampled in a few ticks, one in eight takes sixty."""
    drawn = hashlib.blake2b(str(seed).encode(), digest_size=2).digest()
    return 60 if drawn[0] % 8 == 0 else 1 + drawn[1] % 6


def train(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, **generators: Any) -> FakeCluster:
    generators = {"latency": slow_tail, **generators}
    cluster = FakeCluster(FakeLearner(), FakeGenerators(settings.max_sequence_tokens, **generators))
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    run_training(settings, silent_progress())
    return cluster


def trained(folder: Path) -> list[list[StoredGroup]]:
    return [read_groups(folder, step) for step in range(1, STEPS + 1)]


def spans(folder: Path) -> list[list[list[tuple[int, int]]]]:
    """(tokens, how many versions old they were) of the spans of each completion of each step."""
    return [
        [
            [(span["stop"] - span["start"], step - span["policy_version"]) for span in of_completion]
            for of_completion in pyarrow.parquet.read_table(step_path(folder, step + 1))["spans"].to_pylist()
        ]
        for step in range(STEPS)
    ]


def lags(folder: Path) -> list[int]:
    """Of every token, how many versions old it was."""
    return [lag for step in spans(folder) for one in step for count, lag in one for _ in range(count)]


def all_prompts() -> Counter[str]:
    return Counter(f"test_sampling_ahead:sums:{number}" for number in range(32))


def test_without_lag_it_is_the_synchronous_loop(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, sampled with the seeds and learned from in the order that a loop of a few lines gives."""
    chosen = settings(tmp_path / "run", policy, 0)
    learner, generators = fakes(train(chosen, monkeypatch))
    prompts = load_prompts(chosen.data, load_tokenizer(str(policy)), max_tokens=5).prompts
    cursor = Cursor(prompts, seed=0)
    asked = [cursor.next(4) for _ in range(STEPS)]
    assert [ids for samples, ids in generators.asked if samples == 6] == [
        tuple(prompt.token_ids for prompt in step) for step in asked
    ]
    assert [seed for samples, seed in generators.seeds if samples == 6] == [
        seed_of(0, number, prompt) for number, step in enumerate(asked) for prompt in step
    ]
    assert [[group.prompt_id for group in groups] for groups in trained(tmp_path / "run")] == [
        [prompt.id for prompt in step] for step in asked
    ]
    assert set(lags(tmp_path / "run")) == {0}
    assert learner.work == FakeLearner.work


@pytest.mark.parametrize(("lag", "restarts"), [(1, False), (2, True)])
def test_sampling_goes_ahead_within_the_bound(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, lag: int, restarts: bool
) -> None:
    folder = tmp_path / "run"
    learner, generators = fakes(train(settings(folder, policy, lag), monkeypatch, restarts=restarts))
    assert learner.optimizer_steps == 2 * STEPS
    assert learner.work != FakeLearner.work, "the driver looks after the generators while it waits for the learner"
    assert Counter(group.prompt_id for groups in trained(folder) for group in groups) == all_prompts()
    assert max(lags(folder)) == lag and min(lags(folder)) == 0
    most = max(len(one) for step in spans(folder) for one in step)
    # Pushes come while completions are under way: those go on, or begin again.
    assert most == 1 if restarts else most > 1
    # What is trained on last was asked for with what came before it, and nothing beyond it.
    assert [len(ids) for samples, ids in generators.asked if samples == 6] == [4 * (1 + lag)] + [4] * (STEPS - 1 - lag)
    lines = [line.metrics for line in read_history(folder).lines if line.step]
    assert [line["rollout/policy_lag_max"] for line in lines] == [
        max(lag for one in step for _, lag in one) for step in spans(folder)
    ]
    assert sum(line["rollout/policy_lag_mean"] for line in lines) / STEPS == pytest.approx(
        sum(lags(folder)) / len(lags(folder))
    )
    for step, line in enumerate(lines):
        left = min(1 + lag + step, STEPS) * 4 - 4 * (step + 1)
        assert line["rollout/groups_in_flight"] + line["rollout/groups_buffered"] == left
    assert max(line["rollout/groups_carried_over"] for line in lines) > 0
    assert lines[0]["rollout/groups_carried_over"] == 0
    assert all(0 <= line["time/generator_idle_share"] <= 1 for line in lines)
    # Evaluations open streams of their own beside the training's.
    assert len([line for line in read_history(folder).lines if "eval/accuracy" in line.metrics]) == 4


def test_refills_come_from_what_is_under_way(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    learner = train(settings(folder, policy, 2, refill_rounds=4), monkeypatch).learner
    assert learner.denominators == [240.0] * 2 * STEPS
    lines = [line.metrics for line in read_history(folder).lines if line.step]
    assert sum(line["rollout/refilled_groups"] for line in lines) > 0
    assert 0 < max(lags(folder)) <= 2
    # The walk over the prompts begins anew where refills have used them up; until then none comes twice.
    counts = Counter(group.prompt_id for groups in trained(folder) for group in groups)
    assert counts.keys() == all_prompts().keys() and max(counts.values()) - min(counts.values()) <= 1


class Killed(BaseException):
    pass


def killed_at(version: int, samples: int = 6) -> Callable[[int, int], None]:
    def kill(current: int, asked: int) -> None:
        if current == version and asked == samples:
            raise Killed

    return kill


@pytest.mark.parametrize(("version", "samples", "kept"), [(3, 6, 2), (6, 1, 4)])
def test_killed_and_resumed_no_group_is_lost_or_used_twice(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, version: int, samples: int, kept: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(settings(folder, policy, 3), monkeypatch, on_sampled=killed_at(version, samples))
    found = checkpoint.latest(folder)
    assert found is not None and found.step == kept
    state = found.driver_state()["rollouts"]
    # Both kinds are there, or this tests nothing.
    assert state["asked"] and (state["buffer"] or kept == 2)
    assert len(state["buffer"]) + len(state["asked"]) == 12
    learner, generators = fakes(train(settings(folder, policy, 3, resume="auto"), monkeypatch))
    assert learner.optimizer_steps == 2 * STEPS
    assert Counter(group.prompt_id for groups in trained(folder) for group in groups) == all_prompts()
    assert max(lags(folder)) <= 3
    # The buffered were not sampled again, and the unfinished were, with their seeds.
    again = [seed for asked, seed in generators.seeds if asked == 6]
    assert again[: len(state["asked"])] == [seed for _, seed in state["asked"].values()]
    assert len(again) == 4 * (STEPS - found.step) - len(state["buffer"])


def test_a_smaller_lag_does_not_go_on_with_what_a_larger_one_sampled(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train(settings(folder, policy, 3), monkeypatch, on_sampled=killed_at(3))
    with pytest.raises(ValueError, match=r"rollout\.max_policy_lag=3"):
        train(settings(folder, policy, 1, resume="auto"), monkeypatch)


def test_a_group_comes_back_from_a_checkpoint_as_it_was(tmp_path: Path) -> None:
    prompt = Prompt("rows:1", "1?", (7, 8), object(), {"day": object()})
    completions = [
        Completion((1, 2, 3), (-0.1, -1e-17, -3.0), "a\udc80", "stop", (VersionSpan(0, 1, 4), VersionSpan(1, 3, 5))),
        Completion((9,), (-0.7,), "", "length", (VersionSpan(0, 1, 5),)),
    ]
    verdicts = [
        {"a": verdict.correct("as numpy has it", score=torch.tensor(0.5).numpy()[()], tags=1.0), "b": verdict.wrong()},
        {"a": verdict.timeout("slow"), "b": verdict.unparseable()},
    ]
    group = Group(
        prompt,
        tuple(Rollout(one, said, value) for one, said, value in zip(completions, verdicts, (0.5, None), strict=True)),
    )
    torch.save(group_state(group), tmp_path / "group.pt")
    state = torch.load(tmp_path / "group.pt", weights_only=True)
    assert group_from_state(state, {"rows:1": prompt}) == group
    with pytest.raises(ValueError, match="a group of prompt rows:1, which the data no longer have"):
        group_from_state(state, {})
