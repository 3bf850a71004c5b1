"""Training and fine-tuning from end to end, with engines that only keep count."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import silent_progress
from gpu_ledger import ACTIVATIONS, CARD, SHARE, STATES, WEIGHTS, booking_cluster
from tiny_policy import TINY, make_tiny_policy

from grpo.config import SftConfig, TrainConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.file import load
from grpo.evaluation.model import find_policy
from grpo.report import run_files
from grpo.report.metrics_log import read_history
from grpo.report.rollout_store import read_groups, stored_steps
from grpo.report.timeline import DRIVER, step_lanes
from grpo.run import checkpoint
from grpo.run.best import BestPolicy, kept_policies, place_of
from grpo.run.stored_run import read_run
from grpo.train_loop import train as run_training
from grpo.types import ActorId, ActorKind
from grpo.weights.sync import WeightMismatch

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def rows(count: int) -> Iterator[dict[str, str]]:
    """Questions of the greatest length that the configuration below lets through."""
    for number in range(count):
        yield {"prompt": f"{number}+{number}=?", "answer": str(number % 3)}


def mixed_rows(count: int) -> Iterator[dict[str, str]]:
    """Sums and words by turns."""
    for number in range(count):
        yield {"prompt": f"{number}+{number}=?", "answer": "1", "kind": ("sum", "word")[number % 2]}


MIXED = {
    "data": {"generator": f"{__name__}:mixed_rows", "options": {"count": 4}},
    "verifiers": [
        {"name": "number", "use": "numeric", "options": {"find": ["answer_tag"]}, "when": {"kind": "sum"}},
        {"name": "word", "use": "exact", "options": {"find": ["answer_tag"]}, "when": {"kind": ["word"]}},
        {"name": "length", "use": "length", "options": {"limit": 24, "buffer": 8}, "weight": 0.5},
    ],
}


def settings_of(folder: Path, policy: Path, **run: Any) -> TrainConfig:
    path = folder.parent / f"{folder.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"generator": f"{__name__}:rows", "options": {"count": 10}}
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"folder": str(folder), **run},
                "policy": {"path": str(policy)},
                "data": data,
                "verifiers": [{"name": "answer", "use": "numeric", "options": {"find": ["answer_tag"]}}],
                "rollout": {
                    "prompts_per_step": 4,
                    "group_size": 6,
                    "max_prompt_tokens": 5,
                    "max_completion_tokens": 20,
                },
                "algorithm": {"minibatches": 2},
                "evaluation": {"every": 2, "data": {**data, "options": {"count": 3}}},
                "train": {"steps": 5, "checkpoint_every": 2, "keep_checkpoints": 9},
                "report": {"trackers": []},
            }
        )
    )
    return load(TrainConfig, path)


def train(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, **generators: Any) -> FakeCluster:
    cluster = FakeCluster(FakeLearner(), FakeGenerators(settings.max_sequence_tokens, **generators))
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    try:
        run_training(settings, silent_progress())
    finally:
        assert cluster.closed
    return cluster


def fakes(cluster: FakeCluster) -> tuple[FakeLearner, FakeGenerators]:
    assert cluster.generators is not None
    return cluster.learner, cluster.generators


def steps_of(folder: Path) -> list[int]:
    return [line.step for line in read_history(folder).lines]


def ctrl_c_at(version: int) -> Any:
    """Sent while a step samples; at version 0, while the evaluation before the first step does."""

    def send(current: int, samples: int) -> None:
        if current == version and samples == (6 if version else 1):
            os.kill(os.getpid(), signal.SIGINT)

    return send


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "whole"


@pytest.fixture(scope="module")
def whole(whole_folder: Path, policy: Path) -> Iterator[FakeCluster]:
    """A run that nothing stops."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield train(settings_of(whole_folder, policy), monkeypatch)


def mixed_settings(folder: Path, policy: Path, **sections: Any) -> TrainConfig:
    path = folder.with_suffix(".yaml")
    plain = settings_of(folder, policy).model_dump(mode="json")
    path.write_text(yaml.safe_dump(plain | MIXED | {"evaluation": None} | sections))
    return load(TrainConfig, path)


def test_mixed_data_are_judged_by_the_verifiers_of_their_rows(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(mixed_settings(tmp_path / "run", policy), monkeypatch)
    groups = read_groups(tmp_path / "run", 1)
    assert len(groups) == 4
    for group in groups:
        judge = {"0": "number", "1": "word"}[str(int(group.prompt_id.rpartition(":")[2]) % 2)]
        for rollout in group.rollouts:
            answer, length = rollout.verdicts
            assert (answer.verifier, length.verifier) == (judge, "length")
            right = rollout.completion == "<answer>1</answer>"
            assert answer.status == ("correct" if right else "wrong" if "2" in rollout.completion else "unparseable")
            # Twenty tokens are half-way between 16 and 24: the run hands the verifier the completion's own count.
            assert length.score == -0.5 and "20 tokens" in length.reason
            assert rollout.reward == right - 0.25
    metrics = read_history(tmp_path / "run").lines[-1].metrics
    for name in ("number", "word"):
        statuses = [metrics[f"verdict/{name}/{status}"] for status in ("correct", "wrong", "unparseable")]
        assert sum(statuses) == pytest.approx(1.0)
        assert 0 <= metrics[f"verifier/{name}/p50_s"] <= metrics[f"verifier/{name}/p99_s"]
        assert metrics[f"verifier/{name}/cache_hit_share"] == 0.0
    half = (metrics["verdict/number/correct"] + metrics["verdict/word/correct"]) / 2
    assert metrics["rollout/accuracy"] == pytest.approx(half)


def test_verifiers_on_every_node_give_the_same_verdicts(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, ray_running: None
) -> None:
    train(mixed_settings(tmp_path / "here", policy), monkeypatch)
    train(mixed_settings(tmp_path / "nodes", policy, verification={"per_node": True}), monkeypatch)
    here, nodes = (
        [
            (group.prompt_id, [(rollout.completion, rollout.verdicts, rollout.reward) for rollout in group.rollouts])
            for group in read_groups(tmp_path / folder, 5)
        ]
        for folder in ("here", "nodes")
    )
    assert here == nodes
    assert "verifier/number/p99_s" in read_history(tmp_path / "nodes").lines[-1].metrics


def test_a_row_of_an_unknown_kind_is_refused_before_anything_starts(tmp_path: Path, policy: Path) -> None:
    from grpo.train_loop import train as run

    verifiers = [{**MIXED["verifiers"][0]}, MIXED["verifiers"][2]]
    with pytest.raises(
        ValueError, match=r"row 1 of test_jobs:mixed_rows has kind='word', for which no verifier but length"
    ) as refused:
        run(mixed_settings(tmp_path / "run", policy, verifiers=verifiers), silent_progress())
    assert "add its value to a verifier's `when`" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_each_step_samples_learns_and_pushes_once(whole: FakeCluster, whole_folder: Path) -> None:
    learner, generators = fakes(whole)
    assert generators.versions == [0, 1, 2, 3, 4, 5]
    assert generators.weights == learner.optimizer_steps == 10
    # Six completions of twenty tokens for each of the two prompts of a minibatch.
    assert learner.denominators == [240] * 10
    training = [ids for samples, ids in generators.asked if samples == 6]
    assert [len(ids) for ids in training] == [4] * 5
    # Two epochs of ten prompts.
    seen = [one for ids in training for one in ids]
    assert len(set(seen[:10])) == len(set(seen[10:])) == 10
    # No step samples with another's seeds, not even for the same prompt.
    assert len({seed for samples, seed in generators.seeds if samples == 6}) == 20
    assert [samples for samples, _ in generators.asked].count(1) == 4
    assert steps_of(whole_folder) == [0, 1, 2, 3, 4, 5]


def test_on_a_shared_gpu_learner_and_generators_take_turns(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "run", policy)
    shared = settings.cluster.model_copy(update={"share_gpus": True, "sleep": True})
    settings = settings.model_copy(update={"cluster": shared})
    turns: list[str] = []
    learner = FakeLearner(turns=turns)
    cluster = FakeCluster(learner, FakeGenerators(settings.max_sequence_tokens, turns=turns), device="cuda")
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    # The fakes refuse to work while they sleep.
    run_training(settings, silent_progress())
    assert learner.optimizer_steps == 10 and learner.connected == ["ipc"]
    learn = ["generators sleep", "learner wakes"]
    generate = ["learner sleeps", "generators wake"]
    # Five steps, of which the second and the fourth end with a checkpoint, which is the learner's turn again; the last.
    assert turns == ["learner sleeps", *(learn + generate) * (5 + 2), *learn]


def test_the_bytes_of_a_shared_gpu_fit_at_every_moment(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a start and of a resume, which brings back Adam's states before the generators start."""
    assert WEIGHTS + STATES + SHARE > CARD, "otherwise nobody would have to sleep"
    for resume in ("never", "auto"):
        settings = settings_of(tmp_path / "run", policy, resume=resume)
        shared = settings.cluster.model_copy(update={"share_gpus": True, "sleep": True})
        cluster = booking_cluster(settings.max_sequence_tokens)
        monkeypatch.setattr("grpo.run.training.Cluster", cluster)
        run_training(settings.model_copy(update={"cluster": shared}), silent_progress())
        assert cluster.learner.optimizer_steps == 10
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000005")


def test_vllm_measures_a_shared_gpu_after_the_learner_is_up(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "run", policy)
    shared = settings.cluster.model_copy(update={"share_gpus": True})
    cluster = booking_cluster(settings.max_sequence_tokens)
    monkeypatch.setattr("gpu_ledger.CARD", WEIGHTS + STATES + ACTIVATIONS + SHARE)
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    run_training(settings.model_copy(update={"cluster": shared}), silent_progress())
    assert cluster.learner.optimizer_steps == 10


def test_nobody_sleeps_where_there_is_no_gpu(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path / "run", policy)
    shared = settings.cluster.model_copy(update={"share_gpus": True, "sleep": True})
    learner, generators = fakes(train(settings.model_copy(update={"cluster": shared}), monkeypatch))
    assert learner.turns == generators.turns == learner.connected == []


def test_evaluation_and_checkpoints_come_when_they_are_due(whole: FakeCluster, whole_folder: Path) -> None:
    lines = read_history(whole_folder).lines
    assert [line.step for line in lines if "eval/accuracy" in line.metrics] == [0, 2, 4, 5]
    assert stored_steps(whole_folder, run_files.EVALUATIONS) == (0, 2, 4, 5)
    assert [len(one.rollouts) for one in read_groups(whole_folder, 4, run_files.EVALUATIONS)] == [1, 1, 1]
    # Where each phase of a step began, for its time line.
    began = {phase: lines[1].metrics.get(f"time/{phase}_from_s") for phase in ("generate", "verify", "learn", "sync")}
    assert began["learn"] is not None and began["sync"] is not None
    # Nobody waits for what is there at once.
    begins = [second for second in began.values() if second is not None]
    assert begins == sorted(begins) and 0 <= begins[0] < begins[-1] < lines[1].metrics["time/step_s"]
    told = (whole_folder / "timeline.jsonl").read_text().splitlines()
    lanes = [found.lanes for step in (1, 2, 3, 4, 5) if (found := step_lanes(told, step))]
    assert ["evaluate" in one[DRIVER] for one in lanes] == [False, True, False, True, True]
    assert ["checkpoint" in one[DRIVER] for one in lanes] == [False, True, False, True, True]
    assert all({"learn", "sync"} <= set(one[DRIVER]) and ActorId(ActorKind.VERIFIERS) in one for one in lanes)
    names = sorted(path.name for path in (whole_folder / "checkpoints").iterdir())
    assert names == ["step_000002", "step_000004", "step_000005"]


def with_best(settings: TrainConfig, **schedule: Any) -> TrainConfig:
    chosen = {"keep_best": "eval/accuracy", "keep_checkpoints": 1, **schedule}
    return settings.model_copy(update={"train": settings.train.model_copy(update=chosen)})


def test_the_best_policy_is_kept_though_its_checkpoint_is_gone(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {0: 0.1, 2: 0.9, 4: 0.5, 5: 0.9}
    monkeypatch.setattr(
        "grpo.run.held_out.HeldOut.evaluate", lambda held_out, step: {"eval/accuracy": accuracies[step]}
    )
    learner, _ = fakes(train(with_best(settings_of(tmp_path / "run", policy)), monkeypatch))
    assert kept_policies(tmp_path / "run") == [BestPolicy(2, "eval/accuracy", 0.9, "highest")]
    assert (place_of(tmp_path / "run", 2) / "policy" / "config.json").is_file()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000005"]
    # Only a policy that is better than all before is written.
    assert sum("/run/best/" in folder for folder in learner.exports) == 2
    told = dict(read_run(tmp_path / "run").summary.rows)
    assert told["policy"].endswith("run/checkpoints/step_000005/policy")
    assert told["best policy"] == f"{tmp_path}/run/best/step_000002/policy (eval/accuracy 0.900 at step 2)"
    assert told["look at it"] == f"grpo view {tmp_path}/run"
    assert find_policy(str(place_of(tmp_path / "run", 2))).endswith("best/step_000002/policy")


@pytest.mark.parametrize("stop_at", [0, 2, 4])
def test_stopped_and_resumed_it_is_the_same_run(
    tmp_path: Path,
    policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: FakeCluster,
    whole_folder: Path,
    stop_at: int,
) -> None:
    folder = tmp_path / "parts"
    train(settings_of(folder, policy), monkeypatch, on_sampled=ctrl_c_at(stop_at))
    stopped = checkpoint.latest(folder)
    # The step in which the signal comes is finished.
    assert stopped is not None and stopped.step == (stop_at + 1 if stop_at else 0)
    resumed = train(settings_of(folder, policy, resume="auto"), monkeypatch)
    assert steps_of(folder) == [0, 1, 2, 3, 4, 5]
    learner, generators = fakes(resumed)
    assert learner.optimizer_steps == 10
    assert generators.versions[0] == stopped.step

    def timeless(path: Path) -> list[dict[str, float]]:
        return [
            {k: v for k, v in line.metrics.items() if not k.startswith(("time/", "throughput/", "verifier/", "eval/"))}
            for line in read_history(path).lines
        ]

    assert timeless(folder) == timeless(whole_folder)
    asked = [ids for samples, ids in generators.asked if samples == 6]
    expected = [ids for samples, ids in fakes(whole)[1].asked if samples == 6]
    assert asked == expected[len(expected) - len(asked) :]


def test_a_folder_in_use_is_refused_unless_it_is_resumed(policy: Path, whole: FakeCluster, whole_folder: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run; continue it with resume=auto"):
        from grpo.train_loop import train as run

        run(settings_of(whole_folder, policy), silent_progress())


def test_a_push_that_does_not_arrive_stops_the_run(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightMismatch, match="policy version 1"):
        train(settings_of(tmp_path / "run", policy), monkeypatch, deaf=True)


def test_a_new_run_whose_sides_loaded_different_weights_stops_before_its_first_push(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightMismatch, match=r"^before the first push, .* differ by 1 nats .*policy\.path is the same"):
        train(settings_of(tmp_path / "run", policy), monkeypatch, weights=1)


def test_verifiers_that_fail_stop_the_run(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def broken(completion, reference):\n    raise KeyError('planted')\n")
    settings = settings_of(tmp_path / "run", policy)
    (verifier,) = settings.verifiers
    verifier = verifier.model_copy(update={"use": f"{broken}:broken", "options": {}})
    settings = settings.model_copy(update={"verifiers": (verifier,)})
    with pytest.raises(ValueError, match=r"failed on all 8 completions .*KeyError: 'planted' \(.*broken.py:2\)"):
        run_training(settings, silent_progress())
    unchecked = settings.verification.model_copy(update={"check_golds": "off"})
    with pytest.raises(RuntimeError, match="3 of 3 verdicts failed"):
        train(settings.model_copy(update={"verification": unchecked}), monkeypatch)


PICKY = """
from rewards.verifiers.numeric import Numeric

class Picky(Numeric):
    def reference_problem(self, reference, prompt):
        return "two is no answer" if reference == "2" else ""
"""


def test_rows_whose_reference_cannot_be_used_are_left_out_and_counted(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of ten prompts and one of the three held-out ones, so that a walk over the rest takes in seven prompts."""
    (tmp_path / "picky.py").write_text(PICKY)
    settings = settings_of(tmp_path / "run", policy)
    (verifier,) = settings.verifiers
    verifier = verifier.model_copy(update={"use": f"{tmp_path}/picky.py:Picky"})
    settings = settings.model_copy(update={"verifiers": (verifier,)})
    with pytest.raises(ValueError, match=r"training data: 3 of 10 reference .*row 2 of .*rows: '2': two is no answer"):
        run_training(settings, silent_progress())
    assert not (tmp_path / "run").exists()
    lenient = settings.verification.model_copy(update={"max_unusable_share": 0.4})
    settings = settings.model_copy(update={"verification": lenient})
    _, generators = fakes(train(settings, monkeypatch))
    asked = {ids for samples, group in generators.asked for ids in group if samples == 6}
    evaluated = {ids for samples, group in generators.asked for ids in group if samples == 1}
    assert len(asked) == 7 and len(evaluated) == 2
    lines = read_history(tmp_path / "run").lines
    assert [line.metrics["data/rows_left_out"] for line in lines if line.step] == [3.0] * 5
    left_out = [json.loads(line) for line in (tmp_path / "run" / "left_out.jsonl").read_text().splitlines()]
    assert [row["row"].rpartition(":")[2] for row in left_out] == ["2", "5", "8"]
    assert left_out[0]["problem"] == "two is no answer"


def with_algorithm(settings: TrainConfig, **keys: Any) -> TrainConfig:
    algorithm = AlgorithmConfig.model_validate({"minibatches": 2, **keys})
    assert not list(algorithm.problems(settings.rollout.group_size))
    return settings.model_copy(update={"algorithm": algorithm})


def test_groups_without_variance_are_refilled_and_a_resume_asks_the_same(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody ever answers 0, which is right for four prompts of ten."""
    whole = train(with_algorithm(settings_of(tmp_path / "whole", policy), refill_rounds=4), monkeypatch)
    learner, generators = fakes(whole)
    # Four groups with variance in every step, two in each minibatch, whatever had to be asked for them.
    assert learner.denominators == [240.0] * 10
    lines = read_history(tmp_path / "whole").lines
    refilled = [line.metrics["rollout/refilled_groups"] for line in lines if line.step]
    assert sum(refilled) > 0
    assert [line.metrics["rollout/groups"] for line in lines if line.step] == [4.0 + more for more in refilled]
    assert [line.metrics["rollout/zero_variance_share"] for line in lines if line.step] == [
        pytest.approx(more / (4.0 + more)) for more in refilled
    ]

    # Not even a prompt that comes twice in one step, at the end of an epoch and at the beginning of the next, is
    # sampled with the same seed.
    seeds = [seed for samples, seed in generators.seeds if samples == 6]
    assert len(set(seeds)) == len(seeds)

    sent = []

    def ctrl_c_once(version: int, samples: int) -> None:
        if version == 2 and samples == 6 and not sent:
            sent.append(version)
            os.kill(os.getpid(), signal.SIGINT)

    parts = tmp_path / "parts"
    train(with_algorithm(settings_of(parts, policy), refill_rounds=4), monkeypatch, on_sampled=ctrl_c_once)
    resumed = train(with_algorithm(settings_of(parts, policy, resume="auto"), refill_rounds=4), monkeypatch)
    asked = [ids for samples, ids in fakes(resumed)[1].asked if samples == 6]
    expected = [ids for samples, ids in generators.asked if samples == 6]
    assert asked == expected[len(expected) - len(asked) :]


def test_completions_at_the_limit_may_be_left_out_of_the_loss(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of these are cut, so that there is nothing to step on, and everything is still reported."""
    done = train(with_algorithm(settings_of(tmp_path / "run", policy), overlong_filter=True), monkeypatch)
    assert done.learner.optimizer_steps == 0
    lines = read_history(tmp_path / "run").lines
    assert [line.metrics["rollout/overlong_filtered"] for line in lines if line.step] == [24.0] * 5


def test_rescored_completions_reach_reward_and_ratio(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_algorithm(
        settings_of(tmp_path / "run", policy),
        kl="k1",
        kl_coefficient=0.1,
        kl_place="reward",
        reference_refresh=2,
        proximal="recomputed",
        importance_weight="token",
    )
    learner = train(settings, monkeypatch).learner
    # Sampled at -1.0, under the reference -1.5.
    lines = read_history(tmp_path / "run").lines
    assert [line.metrics["rollout/kl_reference"] for line in lines if line.step] == [pytest.approx(0.5)] * 5
    # Both minibatches of a step start from the policy before the first of them.
    assert sorted(set(learner.proximal), reverse=True) == [-2.0, -4.0, -6.0, -8.0, -10.0]
    assert learner.refreshed == [4, 8]


def sft_settings(folder: Path, hidden_size: int = 16, **more: Any) -> SftConfig:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / "sft.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"folder": str(folder), **more},
                "policy": {"new": {**TINY.model_dump(mode="json"), "hidden_size": hidden_size}},
                "data": {"generator": "grpo.data.arithmetic:demonstrations", "options": {"count": 30}},
                "sft": {"steps": 3, "batch_size": 4, "max_tokens": 100},
                "report": {"trackers": []},
            }
        )
    )
    return load(SftConfig, path)


def sft(settings: SftConfig, monkeypatch: pytest.MonkeyPatch, learner: FakeLearner | None = None) -> FakeLearner:
    from grpo.sft_loop import sft as run

    cluster = FakeCluster(learner or FakeLearner())
    monkeypatch.setattr("grpo.fine_tuning.Cluster", cluster)
    run(settings, silent_progress())
    return cluster.learner


def test_fine_tuning_ends_with_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The time line rounds to milliseconds: a step of a learner that does nothing may have no length there.
    learner = sft(sft_settings(tmp_path / "sft"), monkeypatch, FakeLearner(work=lambda: time.sleep(0.005)))
    assert learner.optimizer_steps == 3
    assert (tmp_path / "sft" / "policy" / "config.json").is_file()
    assert steps_of(tmp_path / "sft") == [1, 2, 3]
    found = step_lanes((tmp_path / "sft" / "timeline.jsonl").read_text().splitlines(), 2)
    assert found is not None and "learn" in found.lanes[DRIVER]


def test_what_counts_as_finished_has_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSpace(FakeLearner):
        def export(self, folder: str) -> None:
            super().export(folder)
            if Path(folder).parent == tmp_path / "sft":
                raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        sft(sft_settings(tmp_path / "sft"), monkeypatch, NoSpace())
    assert not (tmp_path / "sft" / "policy").exists(), "half a policy must not pass for one"
    found = checkpoint.latest(tmp_path / "sft")
    assert found is None or found.step < 3, "a run that is called finished is not gone on with"
    sft(sft_settings(tmp_path / "sft", resume="auto"), monkeypatch)
    assert (tmp_path / "sft" / "policy" / "config.json").is_file()


def test_a_failed_attempt_leaves_no_policy_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    with pytest.raises(ValueError, match=r"sft\.max_tokens=5"):
        settings = sft_settings(tmp_path / "sft")
        sft(settings.model_copy(update={"sft": settings.sft.model_copy(update={"max_tokens": 5})}), monkeypatch)
    sft(sft_settings(tmp_path / "sft", hidden_size=32), monkeypatch)
    assert AutoConfig.from_pretrained(tmp_path / "sft" / "random_policy").hidden_size == 32
