"""The learner under DeepSpeed: the same step whatever the ranks and the ZeRO stage, and a state that resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from setups_for_tests import (
    learner_setups,
    listening_sockets,
    random_batch,
    random_sequences,
    started_learners,
    without_speed,
)
from transformers import AutoModelForCausalLM

from grpo.algorithm.losses import clipped_policy_loss
from grpo.cluster.learner_group import LearnerGroup

pytestmark = pytest.mark.slow

# Ranks and ZeRO stage. The ZeRO-1 one also recomputes activations, which must not change a digit.
SHAPES = {
    "one rank, ZeRO-2": (1, 2),
    "two ranks, ZeRO-2": (2, 2),
    "two ranks, ZeRO-3": (2, 3),
    "one rank, ZeRO-1": (1, 1),
}


@pytest.fixture(scope="module")
def learners(ray_running: None, tied_policy: str) -> Iterator[dict[str, LearnerGroup]]:
    setups = {
        name: learner_setups(tied_policy, ranks=ranks, zero_stage=stage, gradient_checkpointing=stage == 1)
        for name, (ranks, stage) in SHAPES.items()
    }
    with started_learners(setups) as started:
        yield started


def plain_torch_step(path: str) -> tuple[float, float]:
    """Loss and gradient norm of the same batch, one sequence at a time, without packing or DeepSpeed."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    sequences = random_sequences(24)
    trained = sum(sequence.trained_tokens for sequence in sequences)
    total = torch.zeros(())
    for sequence in sequences:
        ids = torch.tensor(sequence.token_ids)
        logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1], dim=-1).gather(1, ids[1:, None])[:, 0]
        sampled = logprobs[sequence.prompt_length - 1 :]
        old = torch.tensor(sequence.old_logprobs)
        advantage = torch.full_like(old, sequence.advantage)
        total = total + clipped_policy_loss(sampled, old, advantage, clip_low=0.2, clip_high=0.28).loss_T.sum()
    loss = total / trained
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return float(loss.detach()), float(norm)


def exported(learner: LearnerGroup, folder: Path) -> dict[str, torch.Tensor]:
    learner.export(str(folder))
    return load_file(folder / "model.safetensors")


def test_ranks_listen_for_each_other_on_loopback(learners: dict[str, LearnerGroup]) -> None:
    listening = listening_sockets()
    assert [name for name, _ in listening if "Learner" in name], "a first rank serves the store by which they meet"
    assert {address.removeprefix("::ffff:") for _, address in listening} <= {"127.0.0.1", "::1"}, listening


def test_first_step_is_the_same_on_any_ranks_and_stage(learners: dict[str, LearnerGroup], tied_policy: str) -> None:
    loss, norm = plain_torch_step(tied_policy)
    metrics = {name: without_speed(learner.step(random_batch(learner.ranks))) for name, learner in learners.items()}
    for name, found in metrics.items():
        assert found["loss"] == pytest.approx(loss, rel=1e-5), name
        assert found["gradient_norm"] == pytest.approx(norm, rel=1e-4), name
        for key, value in metrics["one rank, ZeRO-2"].items():
            assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, key)


def test_weights_after_further_steps_agree(learners: dict[str, LearnerGroup], tmp_path: Path) -> None:
    for seed in (1, 2):
        for learner in learners.values():
            learner.step(random_batch(learner.ranks, seed=seed))
    one = exported(learners["one rank, ZeRO-2"], tmp_path / "one")
    for index, (name, learner) in enumerate(learners.items()):
        other = exported(learner, tmp_path / str(index))
        assert other.keys() == one.keys()
        for tensor in one:
            # Adam's step is as large for a gradient of float noise as for any other, so single elements may go either
            # way; a gradient that is wrong moves all of them, by about 1e-2.
            assert float((other[tensor] - one[tensor]).abs().mean()) < 1e-5, (name, tensor)


def test_export_loads_in_transformers_and_scores_alike(learners: dict[str, LearnerGroup], tmp_path: Path) -> None:
    learner = learners["two ranks, ZeRO-3"]
    learner.export(str(tmp_path / "policy"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    sequences = [list(sequence.token_ids) for sequence in random_sequences(3, seed=5)]
    scored = learner.score(sequences)()
    for ids, found in zip(sequences, scored, strict=True):
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], dim=-1)
        expected = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert torch.allclose(torch.tensor(found), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["one rank, ZeRO-2", "two ranks, ZeRO-3"])
def test_state_resumes_to_the_bit(learners: dict[str, LearnerGroup], name: str, tmp_path: Path) -> None:
    learner = learners[name]
    learner.save(str(tmp_path))
    following = [without_speed(learner.step(random_batch(learner.ranks, seed=seed))) for seed in (7, 8)]
    learner.load(str(tmp_path))
    assert [without_speed(learner.step(random_batch(learner.ranks, seed=seed))) for seed in (7, 8)] == following
    assert (tmp_path / "policy" / "config.json").is_file()
