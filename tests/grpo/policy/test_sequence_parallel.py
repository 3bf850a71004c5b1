"""How a microbatch's tokens are shared out over ranks, and which policies and ranks cannot share."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import Qwen3Config

from grpo.algorithm.packing import Microbatch, TrainingSequence, pack
from grpo.config import LearnerConfig
from grpo.policy.sequence_parallel import SequenceGroup, SequencePart
from grpo.policy.stored import check_heads


@dataclasses.dataclass
class OneOf(SequenceGroup):
    """One of several ranks that never meet."""

    rank: int
    size: int


def packed() -> Microbatch:
    """Two completions of one prompt, and one of another: 4 + 5 + 0 + 2 + 3 = 14 computed and 11 predicted tokens."""
    rows = [((3, 4, 5, 6), 6), ((3, 4, 5, 6), 1), ((7, 8), 4)]
    return pack(
        [
            TrainingSequence((*prompt, *range(9 + number, 9 + number + length)), len(prompt), (0.0,) * length, 1.0)
            for number, (prompt, length) in enumerate(rows)
        ]
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 14, 20])
def test_every_token_is_one_ranks(size: int) -> None:
    batch = packed()
    count = len(batch.input_ids_N)
    assert (count, len(batch.targets_T)) == (14, 11)
    parts: list[SequencePart] = [OneOf(rank, size).part(batch) for rank in range(size)]
    assert len({len(part.input_ids_N) for part in parts}) == 1
    for found, expected in (("input_ids_N", batch.input_ids_N), ("position_ids_N", batch.position_ids_N)):
        joined = torch.cat([getattr(part, found) for part in parts])
        assert joined[:count].tolist() == expected.tolist()
        assert len(joined) == parts[0].positions and not joined[count:].any()
    assert sorted(torch.cat([part.chosen_T for part in parts]).tolist()) == list(range(11))
    for part in parts:
        assert part.input_ids_N[part.source_T].tolist() == batch.input_ids_N[batch.source_T[part.chosen_T]].tolist()
        assert part.targets_T.tolist() == batch.targets_T[part.chosen_T].tolist()


@pytest.mark.parametrize(
    ("heads", "shared", "size", "choices"),
    [(14, 2, 4, "1, 2, 14"), (12, 12, 8, "1, 2, 3, 4, 6, 12"), (16, 6, 4, "1, 2"), (2, 1, 4, "1, 2")],
)
def test_heads_that_cannot_be_shared_out_are_refused(heads: int, shared: int, size: int, choices: str) -> None:
    policy = Qwen3Config(num_attention_heads=heads, num_key_value_heads=shared)
    with pytest.raises(ValueError, match=rf"sequence_parallel={size} cannot .* {heads} .* choose one of {choices}$"):
        check_heads(policy, size)
    for one in choices.split(", "):
        check_heads(policy, int(one))


def test_ranks_that_cannot_be_grouped_are_refused() -> None:
    assert LearnerConfig(ranks=4, sequence_parallel=2).problems("float32") == []
    assert LearnerConfig(ranks=4, sequence_parallel=2).data_parallel == 2
    for ranks, size in ((3, 2), (1, 2)):
        (problem,) = LearnerConfig(ranks=ranks, sequence_parallel=size).problems("float32")
        assert f"learner.ranks={ranks} is not divisible by learner.sequence_parallel={size}" in problem
