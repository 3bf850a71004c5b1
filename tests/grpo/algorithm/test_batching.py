"""From groups and advantages to optimizer steps: what is trained on, what is counted, what each rank gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.algorithm.minibatches import TrainBatch, batch, minibatches
from grpo.algorithm.packing import Microbatch, TrainingSequence
from grpo.algorithm.rescoring import ScoringBatch, Source, kl_to_reference, proximal_logprobs, rescore
from grpo.config import TrainConfig
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict


def make_group(number: int, lengths: Sequence[int], rewards: Sequence[float | None] | None = None) -> Group:
    """A group whose every token says where it comes from: 1000 * group + 100 * (sample + 1) + position."""
    prompt = Prompt(f"p{number}", "?", tuple(1000 * number + position for position in range(3)), "0", {})
    rollouts = []
    for sample, (length, reward) in enumerate(zip(lengths, rewards or [1.0] * len(lengths), strict=True)):
        tokens = tuple(1000 * number + 100 * (sample + 1) + position for position in range(length))
        completion = Completion(tokens, (-0.5,) * length, "text", "stop", (VersionSpan(0, length, 0),))
        said = verdict.timeout("slow") if reward is None else verdict.correct()
        rollouts.append(Rollout(completion, {"answer": said}, reward))
    return Group(prompt, tuple(rollouts))


def cut(
    groups: Sequence[Group],
    advantages: list[list[float]],
    *,
    count: int = 1,
    ranks: int = 1,
    skip: bool = True,
    microbatch_tokens: int = 64,
) -> list[TrainBatch]:
    return list(
        minibatches(
            groups,
            torch.tensor(advantages),
            count=count,
            ranks=ranks,
            microbatch_tokens=microbatch_tokens,
            skip_without_advantage=skip,
        )
    )


def microbatches(found: TrainBatch) -> list[Microbatch]:
    return [microbatch for rank in found.ranks for microbatch in rank.microbatches]


def trained(found: TrainBatch) -> dict[int, float]:
    """Every token that carries loss, with its advantage."""
    return {
        token: advantage
        for one in microbatches(found)
        for token, advantage, weight in zip(
            one.targets_T.tolist(), one.advantages_T.tolist(), one.weights_T.tolist(), strict=True
        )
        if weight
    }


def test_every_completion_token_is_trained_with_its_own_advantage() -> None:
    groups = [make_group(1, [2, 1]), make_group(2, [1, 3])]
    (found,) = cut(groups, [[1.0, -1.0], [0.5, -0.5]])
    assert trained(found) == {
        1100: 1.0, 1101: 1.0, 1200: -1.0,
        2100: 0.5, 2200: -0.5, 2201: -0.5, 2202: -0.5,
    }  # fmt: skip
    assert found.ranks[0].denominator == 7
    (old,) = {float(value) for one in microbatches(found) for value in one.old_logprobs_T[one.weights_T > 0]}
    assert old == -0.5


def test_minibatches_are_made_of_whole_groups_in_order() -> None:
    groups = [make_group(number, [1, 2]) for number in range(1, 7)]
    found = cut(groups, [[1.0, -1.0]] * 6, count=3)
    assert [{token // 1000 for token in trained(one)} for one in found] == [{1, 2}, {3, 4}, {5, 6}]
    assert [one.ranks[0].denominator for one in found] == [6, 6, 6]


def test_a_rollout_without_a_reward_is_left_out_of_loss_and_count() -> None:
    (found,) = cut([make_group(1, [2, 5, 3], [1.0, None, 0.0])], [[1.0, 0.0, -1.0]], skip=False)
    assert {token // 100 for token in trained(found)} == {11, 13}
    assert found.ranks[0].denominator == 5


def test_what_has_no_advantage_is_skipped_but_counted() -> None:
    groups = [make_group(1, [2, 5, 3]), make_group(2, [4, 4, 4])]
    advantages = [[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]
    (skipped,), (computed,) = cut(groups, advantages), cut(groups, advantages, skip=False)
    assert {token // 100 for token in trained(skipped)} == {11, 13}
    assert {token // 100 for token in trained(computed)} == {11, 12, 13, 21, 22, 23}
    assert skipped.ranks[0].denominator == computed.ranks[0].denominator == 22


def test_a_tiny_advantage_is_not_skipped() -> None:
    (found,) = cut([make_group(1, [1, 1])], [[1e-30, -1e-30]])
    assert len(trained(found)) == 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_batch_without_any_advantage_still_is_a_step(ranks: int) -> None:
    found = cut([make_group(1, [2, 5]), make_group(2, [1, 1])], [[0.0, 0.0], [1.0, -1.0]], count=2, ranks=ranks)
    assert len(found) == 2
    assert [len(rank.microbatches) for rank in found[0].ranks] == [1] * ranks
    assert trained(found[0]) == {}
    assert found[0].ranks[0].denominator == 7
    assert found[0].padding_share == 1.0


def test_a_minibatch_without_any_reward_is_no_step() -> None:
    groups = [make_group(1, [2, 2], [None, None]), make_group(2, [1, 1])]
    found = cut(groups, [[0.0, 0.0], [1.0, -1.0]], count=2)
    assert [{token // 1000 for token in trained(one)} for one in found] == [{2}]


def test_a_group_may_be_shorter_than_the_tensor_is_wide() -> None:
    (found,) = cut([make_group(1, [1, 1, 1]), make_group(2, [1, 1])], [[1.0, 0.5, -1.5], [1.0, -1.0, 0.0]])
    assert {token // 100 for token in trained(found)} == {11, 12, 13, 21, 22}


def test_a_tensor_of_fewer_advantages_than_rollouts_is_no_batch() -> None:
    with pytest.raises(ValueError):
        cut([make_group(1, [1, 1, 1])], [[1.0, -1.0]])


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(-1, 1)), min_size=3, max_size=3), min_size=2, max_size=6
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_however_it_is_split_the_same_tokens_are_trained(
    cells: list[list[tuple[int, int]]], ranks: int, count: int, skip: bool
) -> None:
    groups = [make_group(number, [length for length, _ in row]) for number, row in enumerate(cells, start=1)]
    advantages = [[float(advantage) for _, advantage in row] for row in cells]
    found = cut(groups, advantages, count=count, ranks=ranks, skip=skip, microbatch_tokens=20)
    expected = {
        token: advantage
        for group, row in zip(groups, advantages, strict=True)
        for rollout, advantage in zip(group.rollouts, row, strict=True)
        for token in rollout.completion.token_ids
        if advantage or not skip
    }
    together: dict[int, float] = {}
    for one in found:
        assert len(one.ranks) == ranks
        assert len({len(rank.microbatches) for rank in one.ranks}) == 1
        assert len({rank.denominator for rank in one.ranks}) == 1
        assert all(len(microbatch.input_ids_N) <= 20 for microbatch in microbatches(one))
        # No token is trained on twice.
        assert not together.keys() & trained(one).keys()
        assert sum(float(microbatch.weights_T.sum()) for microbatch in microbatches(one)) == len(trained(one))
        assert 0.0 <= one.padding_share <= 1.0
        together |= trained(one)
    assert together == expected
    assert sum(one.ranks[0].denominator for one in found) == sum(length for row in cells for length, _ in row)


def test_a_rank_without_a_sequence_gets_one_without_loss() -> None:
    sequence = TrainingSequence((7, 8, 9), 2, (-1.0,), 1.0)
    found = batch([sequence], denominator=1.0, ranks=3, microbatch_tokens=8)
    weights = [float(rank.microbatches[0].weights_T.sum()) for rank in found.ranks]
    assert sorted(weights) == [0.0, 0.0, 1.0]
    # Three tokens are real, two fillers of three are not.
    assert found.padding_share == pytest.approx(1 - 3 / 9)


def test_padding_share_is_what_attention_pads() -> None:
    def share(lengths: Sequence[int]) -> float:
        rows = [TrainingSequence(tuple(range(length)), 1, (0.0,) * (length - 1), 1.0) for length in lengths]
        return batch(rows, denominator=1.0, ranks=1, microbatch_tokens=100).padding_share

    assert share([8, 8, 8]) == 0.0
    # The last token of each is not computed.
    assert share([20, 21]) == pytest.approx(1 / 40)
    # Too unlike to be padded to one length: two runs without padding.
    assert share([6, 8]) == 0.0


def test_a_group_s_prompt_is_computed_once_and_the_rest_of_the_work_is_still_even() -> None:
    groups = [make_group(number, [4] * 8) for number in range(1, 9)]
    (found,) = cut(groups, [[1.0, -1.0] * 4] * 8, ranks=2, microbatch_tokens=1000)
    # Each sequence has 7 tokens; 8 groups of 3 prompt tokens and 8 x 3 completion tokens are computed.
    assert [len(one.input_ids_N) for one in microbatches(found)] == [4 * 27, 4 * 27]
    assert found.shares() == {"padding_share": 0.0, "shared_share": pytest.approx(1 - 8 * 27 / (64 * 7))}
    # One group for four ranks is cut up, or three of them would be idle: two completions and the prompt for each.
    (found,) = cut(groups[:1], [[1.0, -1.0] * 4], ranks=4, microbatch_tokens=1000)
    assert [len(one.input_ids_N) for one in microbatches(found)] == [9, 9, 9, 9]


def test_batches_are_values() -> None:
    (found,) = cut([make_group(1, [1, 1])], [[1.0, -1.0]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.padding_share = 0.0  # type: ignore[misc]


class FakeScorer:
    """Gives each predicted token the log-probability -token / 1000 under the policy, and -1 under the reference."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.sources = ranks, list[str]()

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[torch.Tensor]]:
        self.sources.append(source)
        assert len(batch.ranks) == self.ranks and len({len(rank) for rank in batch.ranks}) == 1
        return [
            [-one.targets_T / 1000 if source == "policy" else -torch.ones(len(one.targets_T)) for one in rank]
            for rank in batch.ranks
        ]


def settings(**algorithm: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"folder": "run"}, "policy": {"path": "policy"}, "data": {"path": "rows.jsonl"},
            "verifiers": [{"name": "answer", "use": "numeric"}], "train": {"steps": 1},
            "learner": {"microbatch_tokens": 8}, "algorithm": algorithm,
        }
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_scores_come_back_to_the_completions_that_wanted_them(ranks: int) -> None:
    groups = [make_group(1, [2, 1, 3]), make_group(2, [1, 4, 2])]
    wanted_PG = torch.tensor([[True, False, True], [False, True, False]])
    scorer = FakeScorer(ranks)
    scores = rescore(settings(), scorer, groups, wanted_PG, "policy")
    for group, scores_G, wanted_G in zip(groups, scores, wanted_PG.tolist(), strict=True):
        for rollout, score, wanted in zip(group.rollouts, scores_G, wanted_G, strict=True):
            tokens = rollout.completion.token_ids
            assert score == (pytest.approx([-token / 1000 for token in tokens]) if wanted else None)
    assert scorer.sources == ["policy"]
    assert rescore(settings(), scorer, groups, torch.zeros(2, 3, dtype=torch.bool), "policy") == [[None] * 3] * 2


def test_the_proximal_policy_is_asked_only_for_what_can_teach() -> None:
    groups, scorer = [make_group(1, [2, 1, 3])], FakeScorer(1)
    advantages_PG, carries_PG = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[True, True, False]])
    assert proximal_logprobs(settings(), scorer, groups, advantages_PG, carries_PG) is None
    for algorithm, known in (
        ({"proximal": "recomputed"}, [True, False, False]),
        ({"proximal": "recomputed", "entropy_coefficient": 0.1}, [True, True, False]),
    ):
        scores = proximal_logprobs(settings(**algorithm), scorer, groups, advantages_PG, carries_PG)
        assert scores is not None and [score is not None for score in scores[0]] == known


def test_the_divergence_in_the_reward_is_summed_over_tokens() -> None:
    groups, valid_PG = [make_group(1, [2, 1, 3])], torch.tensor([[True, False, True]])
    scorer = FakeScorer(2)
    in_reward = settings(kl="k1", kl_coefficient=0.1, kl_place="reward")
    # Sampled with -0.5 at each token, and -1 under the reference: k1 is 0.5 at each token.
    assert kl_to_reference(in_reward, scorer, groups, valid_PG).tolist() == [[1.0, 0.0, 1.5]]
    assert scorer.sources == ["reference"]
    assert kl_to_reference(settings(), scorer, groups, valid_PG).tolist() == [[0.0, 0.0, 0.0]]
    assert scorer.sources == ["reference"]
