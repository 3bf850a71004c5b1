"""The gradient does not depend on how a batch is split, nor on computing what adds nothing to it.

DeepSpeed is not part of it: the ranks' sums are added up here as its average over ranks, times their number, does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_policy import LENGTHS, load_tiny_model, make_tiny_policy, sampled_groups, tiny_logprobs
from torch import Tensor

from grpo.algorithm.losses import clipped_policy_loss, k3_kl
from grpo.algorithm.minibatches import RankBatch, TrainBatch, batch, minibatches
from grpo.algorithm.packing import Microbatch, TrainingSequence, pack
from grpo.types import Group

if TYPE_CHECKING:
    from grpo.policy.logprobs import PolicyLogprobs

ADVANTAGES = [[1.2, -0.4, 0.0, -0.8], [0.0, 0.0, 0.0, 0.0], [-0.7, 0.7, 0.0, 0.0]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyLogprobs:
    return tiny_logprobs(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def groups(policy: PolicyLogprobs) -> list[Group]:
    """Completions of many lengths, sampled by a policy that differs from the one trained."""
    return sampled_groups(policy, 0.4, [[1.0] * len(lengths) for lengths in LENGTHS])


def objective(policy: PolicyLogprobs, microbatch: Microbatch, kl: float = 0.0) -> Tensor:
    """The sum of the loss over the microbatch's trained tokens."""
    (logprobs_T,) = policy(microbatch, 0.7)
    loss_T = clipped_policy_loss(
        logprobs_T, microbatch.old_logprobs_T, microbatch.advantages_T, clip_low=0.2, clip_high=0.28
    ).loss_T
    if kl:
        loss_T = loss_T + kl * k3_kl(logprobs_T, microbatch.old_logprobs_T)
    return (loss_T * microbatch.weights_T).sum()


def step(policy: PolicyLogprobs, ranks: Sequence[RankBatch], kl: float = 0.0) -> dict[str, Tensor]:
    """Loss and gradient of one optimizer step: sums over everything, divided once."""
    policy.zero_grad()
    loss = torch.zeros(())
    for rank in ranks:
        for microbatch in rank.microbatches:
            # As LearnerRank.step: times the ranks, divided by the global count, then averaged over the ranks.
            part = objective(policy, microbatch, kl) * (len(ranks) / rank.denominator) / len(ranks)
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss + part.detach()
    return {"loss": loss} | {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def cut(groups: Sequence[Group], ranks: int, microbatch_tokens: int, *, skip: bool) -> TrainBatch:
    (found,) = minibatches(
        groups,
        torch.tensor(ADVANTAGES),
        count=1,
        ranks=ranks,
        microbatch_tokens=microbatch_tokens,
        skip_without_advantage=skip,
    )
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=2e-5, atol=2e-6, msg=lambda told, name=name: f"{name}: {told}"
        )


def one_by_one(policy: PolicyLogprobs, groups: Sequence[Group]) -> dict[str, Tensor]:
    """The loss by its definition: each completion alone, all tokens, mean over tokens at the end."""
    parts, tokens = [], 0
    for group, advantages in zip(groups, ADVANTAGES, strict=True):
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            sampled = rollout.completion
            ids = (*group.prompt.token_ids, *sampled.token_ids)
            parts.append(objective(policy, pack([TrainingSequence(ids, 4, sampled.logprobs, advantage)])))
            tokens += len(sampled.token_ids)
    policy.zero_grad()
    loss = torch.stack(parts).sum() / tokens
    loss.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach()} | {
        name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("microbatch_tokens", [17, 24, 40, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_no_split_changes_loss_or_gradient(
    policy: PolicyLogprobs, groups: list[Group], ranks: int, microbatch_tokens: int, skip: bool
) -> None:
    expected = one_by_one(policy, groups)
    assert float(expected["loss"]) != 0.0
    assert max(float(tensor.abs().max()) for name, tensor in expected.items() if name != "loss") > 1e-2
    assert_same(step(policy, cut(groups, ranks, microbatch_tokens, skip=skip).ranks), expected)


def test_with_a_divergence_penalty_what_has_no_advantage_matters(policy: PolicyLogprobs, groups: list[Group]) -> None:
    computed = step(policy, cut(groups, 2, 24, skip=False).ranks, kl=0.1)
    skipped = step(policy, cut(groups, 2, 24, skip=True).ranks, kl=0.1)
    assert abs(float(computed["loss"] - skipped["loss"])) > 1e-4


def test_supervised_rows_too(policy: PolicyLogprobs) -> None:
    rows = [TrainingSequence(tuple(range(3, 5 + length)), 1, (0.0,) * (length + 1), 0.0) for length in (1, 5, 2, 9, 12)]
    trained = sum(row.trained_tokens for row in rows)

    def loss_of(ranks: int, microbatch_tokens: int) -> float:
        cut_up = batch(rows, denominator=float(trained), ranks=ranks, microbatch_tokens=microbatch_tokens)
        with torch.no_grad():
            return -sum(
                float((policy(one, 1.0)[0] * one.weights_T).sum()) for rank in cut_up.ranks for one in rank.microbatches
            ) / trained  # fmt: skip

    expected = loss_of(1, 1000)
    assert expected > 0.0
    assert [loss_of(ranks, budget) for ranks, budget in [(1, 14), (2, 20), (4, 14)]] == pytest.approx([expected] * 3)


@torch.no_grad()
def test_log_probabilities_and_entropy_are_those_of_the_whole_logits(
    policy: PolicyLogprobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = TrainingSequence((3, 9, 4, 11, 6, 13), 2, (0.0,) * 4, 0.0)
    microbatch = pack([sequence])
    for tokens in (1024, 3):
        monkeypatch.setattr("grpo.policy.head.LOGIT_BYTES", tokens * 4 * policy.model.config.vocab_size)
        logprobs_T, entropy_T = policy(microbatch, 0.5, "value")
        plain = load_tiny_model(Path(policy.model.name_or_path), "sdpa")
        logits_TV = plain(input_ids=torch.tensor([sequence.token_ids]), use_cache=False).logits[0].float() / 0.5
        expected_TV = logits_TV.log_softmax(-1)
        # The prompt's second token predicts the first of four completion tokens.
        by_hand = [expected_TV[position, sequence.token_ids[position + 1]] for position in range(1, 5)]
        torch.testing.assert_close(logprobs_T, torch.stack(by_hand), rtol=1e-5, atol=1e-5)
        entropy = torch.distributions.Categorical(logits=logits_TV[1:5]).entropy()
        torch.testing.assert_close(entropy_T, entropy, rtol=1e-4, atol=1e-5)


def test_chunks_of_logits_change_no_gradient(
    policy: PolicyLogprobs, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step(policy, cut(groups, 1, 1000, skip=False).ranks)
    monkeypatch.setattr("grpo.policy.head.LOGIT_BYTES", 7 * 4 * policy.model.config.vocab_size)
    assert_same(step(policy, cut(groups, 1, 1000, skip=False).ranks), whole)


def test_a_head_that_is_no_linear_layer_is_refused(tmp_path: Path) -> None:
    from grpo.policy.logprobs import PolicyLogprobs

    model = load_tiny_model(make_tiny_policy(tmp_path))
    model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(ValueError, match="one linear layer, but the policy's head is Identity"):
        PolicyLogprobs(model)
