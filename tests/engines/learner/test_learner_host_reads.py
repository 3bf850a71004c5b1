"""A step of the real learner reads as many numbers on the host, however many microbatches it has."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from ranks_without_ray import HostReads, free_port
from setups_for_tests import learner_setups, random_sequences

from grpo.algorithm.minibatches import batch

pytestmark = pytest.mark.slow


def reads_of_steps(path: str, port: int) -> list[tuple[int, int, int]]:
    """For steps of few and of many microbatches: their number, reads of a step, reads of scoring."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from grpo.learner.rank import LearnerRank

    (setup,) = learner_setups(path)
    learner = LearnerRank(setup, "127.0.0.1", port)
    sequences, found = random_sequences(24, group_size=2), []
    for tokens in (256, 64):
        (part,) = batch(sequences, denominator=99.0, ranks=1, microbatch_tokens=tokens).ranks
        # The first step of a kind sets up DeepSpeed's buffers.
        learner.step(part)
        with HostReads("cpu") as of_step:
            learner.step(part)
        with HostReads("cpu") as of_scoring:
            scored = learner.logprobs(part.microbatches, "policy")
        assert [len(one) for one in scored] == [len(one.targets_T) for one in part.microbatches]
        found.append((len(part.microbatches), len(of_step.names), len(of_scoring.names)))
    torch.distributed.destroy_process_group()
    return found


def test_reads_do_not_grow_with_microbatches(tied_policy: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        few, many = pool.submit(reads_of_steps, tied_policy, free_port()).result(timeout=240)
    assert few[0] < 5 and many[0] > 2 * few[0]
    assert few[1] == many[1] > 0
    assert few[2] == many[2] == 0
