"""The learner under DeepSpeed: steps that are not finite, the reference, and log-probabilities on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ranks_without_ray import Case, run_cases
from safetensors.torch import load_file
from setups_for_tests import learner_setups, random_batch, random_sequences, started_learners, without_speed

from grpo import config
from grpo.algorithm.minibatches import TrainBatch, batch
from grpo.algorithm.rescoring import Source, pack_for_scoring, unpack
from grpo.cluster.learner_group import LearnerGroup
from grpo.config.algorithm import AlgorithmConfig

pytestmark = pytest.mark.slow

# Ranks, how many of them share each microbatch, ZeRO stage and dtype.
SHAPES: dict[str, tuple[int, int, int, config.Dtype]] = {
    "one rank, ZeRO-1, bfloat16": (1, 1, 1, "bfloat16"),
    "two ranks, ZeRO-2": (2, 1, 2, "float32"),
    "two ranks, ZeRO-3": (2, 1, 3, "float32"),
    "two ranks share, ZeRO-2": (2, 2, 2, "float32"),
}
ALGORITHM = AlgorithmConfig(kl="k3", kl_coefficient=0.1, reference_refresh=1)


@pytest.fixture(scope="module")
def skipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("skipped")


@pytest.fixture(scope="module")
def learners(ray_running: None, tied_policy: str, skipped: Path) -> Iterator[dict[str, LearnerGroup]]:
    setups = {
        name: learner_setups(
            tied_policy,
            ranks=ranks,
            sequence_parallel=shared,
            zero_stage=stage,
            dtype=dtype,
            algorithm=ALGORITHM,
            skipped_folder=str(skipped / name),
        )
        for name, (ranks, shared, stage, dtype) in SHAPES.items()
    }
    with started_learners(setups) as started:
        yield started


def broken_batch(ranks: int, kind: str) -> TrainBatch:
    """One sequence is at fault, and so one rank only has it."""
    sequences = random_sequences(24, seed=3)
    first = sequences[0]
    if kind == "loss":
        old = (float("nan"), *first.old_logprobs[1:])
        sequences[0] = dataclasses.replace(first, old_logprobs=old)
        return batch(sequences, denominator=100.0, ranks=ranks, microbatch_tokens=256)
    # The sum of the loss is a number; divided, its gradient is beyond float32.
    sequences[0] = dataclasses.replace(first, advantage=1e35)
    return batch(sequences, denominator=1e-6, ranks=ranks, microbatch_tokens=256)


def exported(learner: LearnerGroup, folder: Path) -> dict[str, torch.Tensor]:
    learner.export(str(folder))
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_step_that_is_not_finite_leaves_no_trace_but_its_batch(
    learners: dict[str, LearnerGroup], skipped: Path, name: str, kind: str, tmp_path: Path
) -> None:
    learner = learners[name]
    learner.step(random_batch(learner.ranks, seed=1))
    learner.save(str(tmp_path / "state"))
    expected = without_speed(learner.step(random_batch(learner.ranks, seed=2)))
    assert expected["skipped_steps"] == 0.0
    learner.load(str(tmp_path / "state"))
    before = exported(learner, tmp_path / "before")
    assert learner.step(broken_batch(learner.ranks, kind)) == {"skipped_steps": 1.0, "learning_rate": 1e-2}
    after = exported(learner, tmp_path / "after")
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
    # Neither gradients nor the optimizer's moments remember it.
    after = without_speed(learner.step(random_batch(learner.ranks, seed=2)))
    assert after == pytest.approx(expected, rel=1e-6)
    files = sorted((skipped / name).iterdir())
    assert len(files) % learner.ranks == 0 and len(files) >= learner.ranks
    kept = [torch.load(path, weights_only=True) for path in files[-learner.ranks :]]
    assert {one["denominator"] for one in kept} == {100.0 if kind == "loss" else 1e-6}
    old = torch.cat([part["old_logprobs_T"] for one in kept for part in one["microbatches"]])
    largest = max(float(part["advantages_T"].max()) for one in kept for part in one["microbatches"])
    assert bool(old.isnan().any()) if kind == "loss" else largest == pytest.approx(1e35)


def scored(learner: LearnerGroup, source: Source) -> list[list[float]]:
    sequences = random_sequences(5, seed=5)
    packed = pack_for_scoring(sequences, learner.ranks, 128)
    found = unpack(packed, learner.logprobs(packed, source))
    assert [len(found[number]) for number in range(5)] == [one.trained_tokens for one in sequences]
    return [list(found[number]) for number in range(5)]


@pytest.mark.parametrize("name", ["two ranks, ZeRO-2", "two ranks, ZeRO-3", "two ranks share, ZeRO-2"])
def test_the_reference_stays_until_it_is_refreshed(
    learners: dict[str, LearnerGroup], name: str, tmp_path: Path
) -> None:
    learner = learners[name]
    learner.refresh_reference()
    sequences = random_sequences(5, seed=5)
    probe = learner.score([one.token_ids for one in sequences])()
    policy = scored(learner, "policy")
    for one, row, expected in zip(sequences, policy, probe, strict=True):
        assert row == pytest.approx(expected[one.prompt_length - 1 :], abs=1e-5)
    reference = scored(learner, "reference")
    assert reference == [pytest.approx(row, abs=1e-5) for row in policy]
    learner.save(str(tmp_path))
    # Nothing to diverge from at first, something afterwards.
    first, second = (learner.step(random_batch(learner.ranks, seed=seed)) for seed in (8, 9))
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-6) and second["kl_reference"] > 1e-6
    assert scored(learner, "reference") == reference
    assert scored(learner, "policy") != policy
    learner.refresh_reference()
    assert scored(learner, "reference") == [pytest.approx(row, abs=1e-5) for row in scored(learner, "policy")]
    # A checkpoint holds the reference of its time.
    learner.load(str(tmp_path))
    assert scored(learner, "reference") == reference


@pytest.mark.parametrize("name", list(SHAPES))
def test_too_many_of_them_in_a_row_stop_the_run(learners: dict[str, LearnerGroup], skipped: Path, name: str) -> None:
    learner = learners[name]
    learner.step(random_batch(learner.ranks))
    assert learner.step(broken_batch(learner.ranks, "loss"))["skipped_steps"] == 1.0
    with pytest.raises(RuntimeError, match=r"2 optimizer steps in a row .* learner\.max_skipped_steps"):
        learner.step(broken_batch(learner.ranks, "gradient"))


def test_functions_of_a_file_reach_every_rank(tied_policy: str, tmp_path: Path) -> None:
    """They restate built-in choices, and take the same steps to the last digit."""
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\n"
        "def ratio(logprobs_T, old_logprobs_T, advantages_T, *, clip_low, clip_high):\n"
        "    ratio_T = torch.exp(logprobs_T - old_logprobs_T)\n"
        "    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)\n"
        "    return -torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)\n\n\n"
        "def kl(logprobs_T, reference_logprobs_T, *, power):\n"
        "    return (logprobs_T - reference_logprobs_T).abs() ** power / 2\n"
    )
    built_in = AlgorithmConfig(kl="k2", kl_coefficient=0.1)
    named = {name: f"{tmp_path}/mine.py:{name}" for name in ("ratio", "kl")}
    of_file = built_in.model_copy(update=named | {"options": {"power": 2}})
    cases = {"built-in": Case({}, algorithm=built_in), "file": Case({}, algorithm=of_file)}
    outcomes = run_cases(tied_policy, tmp_path, cases)
    for expected, found in zip(outcomes["built-in"].metrics, outcomes["file"].metrics, strict=True):
        for key in ("loss", "gradient_norm", "kl_reference", "ratio_p50"):
            assert found[key] == pytest.approx(expected[key], rel=1e-6), key
    assert expected["kl_reference"] > 0
    for name, tensor in outcomes["built-in"].weights.items():
        assert torch.equal(outcomes["file"].weights[name], tensor), name
