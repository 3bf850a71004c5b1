"""The learner on a GPU: what sleeping frees."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ranks_without_ray import free_port, small_microbatches
from setups_for_tests import learner_setups

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_sleeping_learner_gives_its_optimizer_states_back(untied_policy: str) -> None:
    from grpo.learner.rank import LearnerRank

    (setup,) = learner_setups(untied_policy, dtype="bfloat16", zero_stage=2)
    learner = LearnerRank(dataclasses.replace(setup, device="cuda"), "127.0.0.1", free_port())
    (part,) = small_microbatches(0, 1).ranks
    learner.step(part)
    awake = torch.cuda.memory_allocated()
    learner.sleep()
    parameters = sum(tensor.numel() for _, tensor in learner.weights())
    # Two moments and the weights, each float32.
    assert awake - torch.cuda.memory_allocated() >= 12 * parameters
    learner.wake()
    assert torch.cuda.memory_allocated() == pytest.approx(awake, rel=0.05)
    assert learner.step(part)["skipped_steps"] == 0
