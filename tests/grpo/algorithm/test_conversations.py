"""Conversations in the loss: only sampled tokens carry it, in every part, however the batch is cut."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conversations.made_up import make_continuation, make_conversation, make_dialogue
from tiny_policy import PROMPT, TEMPERATURE, tiny_logprobs
from torch import Tensor

from grpo.algorithm.aggregation import sequence_mean, token_mean
from grpo.algorithm.contracts import Aggregation
from grpo.algorithm.minibatches import minibatches
from grpo.algorithm.objective import policy_terms
from grpo.algorithm.packing import TrainingSequence, pack
from grpo.algorithm.parts import sequences_of
from grpo.algorithm.rescoring import ScoringBatch, Source, divergences, proximal_logprobs, rescore
from grpo.algorithm.totals import Totals
from grpo.config import TrainConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict

if TYPE_CHECKING:
    from grpo.policy.logprobs import PolicyLogprobs

SETTINGS: dict[str, Any] = {
    "run": {"folder": "run"},
    "policy": {"path": "policy"},
    "data": {"path": "rows.jsonl"},
    "verifiers": [{"name": "answer", "use": "exact"}],
    "train": {"steps": 1},
    "learner": {"microbatch_tokens": 40},
}
# Sampled and given pieces of each part of each conversation, in tokens; the first is a single turn.
SHAPES = [
    [[[5], [6]], [[3, 2, 4]], [[2, 5, 1, 1, 3], [1, 2, 2]]],
    [[[4, 1, 1]], [[1, 3, 2], [2], [3, 1, 1]], [[6]]],
]
ADVANTAGES = [[1.0, -0.7, 0.4], [-0.5, 0.9, 0.0]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyLogprobs:
    return tiny_logprobs(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def groups(policy: PolicyLogprobs) -> list[Group]:
    chance = random.Random(4)
    made = []
    for number, shapes in enumerate(SHAPES):
        rollouts = []
        for shape in shapes:
            first, *others = [[[chance.randrange(3, 20) for _ in range(size)] for size in part] for part in shape]
            further = tuple(
                make_continuation([*PROMPT, *(chance.randrange(3, 20) for _ in range(3))], part, noise(chance, part))
                for part in others
            )
            rollouts.append(
                Rollout(
                    make_conversation(first, noise(chance, first), make_dialogue(further=further)),
                    {"answer": verdict.correct()},
                    1.0,
                )
            )
        tokens = tuple(chance.randrange(3, 20) for _ in range(5))
        single = Completion(tokens, tuple(noise(chance, [tokens])), "text", "stop", (VersionSpan(0, 5, 0),))
        rollouts.append(Rollout(single, {"answer": verdict.correct()}, 1.0))
        made.append(Group(Prompt(f"p{number}", "?", PROMPT, "0", {}), tuple(rollouts)))
    return made


def noise(chance: random.Random, pieces: Sequence[Sequence[int]]) -> list[float]:
    """Log-probabilities for the sampled pieces, which stand at even places."""
    return [-2.0 + chance.gauss(0, 0.5) for piece in pieces[::2] for _ in piece]


@dataclass
class Token:
    """A sampled token of a rollout: its log-probability now and when it was sampled, and the rollout's place."""

    logprob: Tensor
    old: float
    place: tuple[int, int]


def sampled_tokens(policy: PolicyLogprobs, groups: Sequence[Group]) -> list[Token]:
    """Every sampled token, from a plain forward pass over each part alone."""
    tokens: list[Token] = []
    for row, group in enumerate(groups):
        for column, rollout in enumerate(group.rollouts):
            completion = rollout.completion
            parts: list[tuple[tuple[int, ...], Any]] = [(PROMPT, completion)]
            parts += [(part.prompt_ids, part) for part in completion.further]
            for before, part in parts:
                ids = (*before, *part.token_ids)
                (logprobs,) = policy(pack([TrainingSequence(ids, 1, (0.0,) * (len(ids) - 1), 0.0)]), TEMPERATURE)
                for at in range(len(part.token_ids)):
                    if not any(start <= at < stop for start, stop in part.given):
                        # The first of the log-probabilities belongs to the second token.
                        tokens.append(Token(logprobs[len(before) + at - 1], part.logprobs[at], (row, column)))
    return tokens


def by_hand(
    policy: PolicyLogprobs, groups: Sequence[Group], advantages: Sequence[float], *, per_rollout: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Loss, gradient and metrics by the equations, over all sampled tokens; `advantages` of each of them."""
    tokens = sampled_tokens(policy, groups)
    counts = {token.place: sum(other.place == token.place for other in tokens) for token in tokens}
    terms, clipped = [], 0
    for token, advantage in zip(tokens, advantages, strict=True):
        ratio = torch.exp(token.logprob - token.old)
        term = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        terms.append(term / counts[token.place] if per_rollout else term)
        clipped += bool(ratio > 1.28) and advantage > 0
    policy.zero_grad()
    loss = torch.stack(terms).sum() / (len(counts) if per_rollout else len(tokens))
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return gradient, {"loss": float(loss.detach()), "clip_high_share": clipped / len(tokens)}


def step(
    policy: PolicyLogprobs, groups: Sequence[Group], ranks: int, size: int, aggregation: Aggregation, **keys: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The same by the way of a run."""
    rows = torch.zeros(2, 4)
    rows[:, :3] = torch.tensor(ADVANTAGES)
    rows[:, 3] = 0.3
    (cut,) = minibatches(
        groups,
        rows,
        count=1,
        ranks=ranks,
        microbatch_tokens=size,
        skip_without_advantage=False,
        aggregation=aggregation,
        **keys,
    )
    policy.zero_grad()
    totals = Totals()
    for rank in cut.ranks:
        for microbatch in rank.microbatches:
            logprobs_T, entropy_T = policy(microbatch, TEMPERATURE, "gradient")
            terms = policy_terms(AlgorithmConfig(), microbatch, logprobs_T, entropy_T, None)
            (terms.loss_sum / rank.denominator).backward()  # type: ignore[no-untyped-call]
            totals.add(terms)
    gradient = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return gradient, totals.metrics(cut.ranks[0].denominator, AlgorithmConfig())


def of_rollouts(groups: Sequence[Group]) -> list[float]:
    """The rollout's advantage for each sampled token."""
    advantages = []
    for group, known in zip(groups, ADVANTAGES, strict=True):
        for rollout, advantage in zip(group.rollouts, [*known, 0.3], strict=True):
            advantages += [advantage] * rollout.completion.sampled_tokens
    return advantages


def assert_same(found: Any, expected: Any) -> None:
    gradient, metrics = found
    whole, figures = expected
    assert max(float(tensor.abs().max()) for tensor in whole.values()) > 1e-3
    for name, tensor in whole.items():
        torch.testing.assert_close(gradient[name], tensor, rtol=2e-5, atol=3e-6)
    for name, value in figures.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("aggregation", [token_mean, sequence_mean])
def test_loss_gradient_and_metrics_equal_the_equations(
    policy: PolicyLogprobs, groups: list[Group], aggregation: Aggregation
) -> None:
    expected = by_hand(policy, groups, of_rollouts(groups), per_rollout=aggregation is sequence_mean)
    assert expected[1]["clip_high_share"] > 0
    for ranks, size in [(1, 1000), (1, 24), (2, 30), (3, 24), (5, 60)]:
        assert_same(step(policy, groups, ranks, size, aggregation), expected)


def test_an_advantage_for_each_token(policy: PolicyLogprobs, groups: list[Group]) -> None:
    chance = random.Random(9)
    counts = [[rollout.completion.sampled_tokens for rollout in group.rollouts] for group in groups]
    by_token: list[list[tuple[float, ...] | None]] = [
        [tuple(chance.gauss(0, 1) for _ in range(count)) for count in row] for row in counts
    ]
    by_token[1][3] = None
    flat = [value for values in itertools.chain(*by_token) for value in (values or (0.3,) * 5)]
    expected = by_hand(policy, groups, flat, per_rollout=False)
    for ranks, size in [(1, 1000), (2, 30), (3, 24)]:
        assert_same(step(policy, groups, ranks, size, token_mean, token_advantages=by_token), expected)


class PlainScorer:
    """Scores microbatches with the tiny policy."""

    ranks = 2

    def __init__(self, policy: PolicyLogprobs) -> None:
        self._policy = policy

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        return [[self._policy(one, TEMPERATURE)[0].detach() for one in share] for share in batch.ranks]


def test_scores_are_in_the_order_of_the_sampled_log_probabilities(policy: PolicyLogprobs, groups: list[Group]) -> None:
    settings = TrainConfig.model_validate(SETTINGS)
    wanted = torch.ones(2, 4, dtype=torch.bool)
    wanted[1, 0] = False
    scores = rescore(settings, PlainScorer(policy), groups, wanted, "policy")
    expected: dict[tuple[int, int], list[float]] = {}
    for token in sampled_tokens(policy, groups):
        expected.setdefault(token.place, []).append(float(token.logprob.detach()))
    assert scores[1][0] is None
    for (row, column), values in expected.items():
        if (row, column) != (1, 0):
            assert scores[row][column] == pytest.approx(values, abs=1e-5)
    algorithm = AlgorithmConfig(kl="k1", kl_coefficient=0.1, kl_place="reward")
    sums = divergences(groups, scores, (2, 4), algorithm)
    sampled = groups[0].rollouts[0].completion.sampled_logprobs
    assert float(sums[0, 0]) == pytest.approx(sum(sampled) - sum(expected[0, 0]), abs=1e-4)
    assert float(sums[1, 0]) == 0
    # The learner's log-probabilities come back to the tokens that they belong to.
    (cut,) = minibatches(
        groups, torch.ones(2, 4), count=1, ranks=1, microbatch_tokens=1000, skip_without_advantage=False,
        proximal=rescore(settings, PlainScorer(policy), groups, torch.ones(2, 4, dtype=torch.bool), "policy"),
    )  # fmt: skip
    for microbatch in cut.ranks[0].microbatches:
        (logprobs_T,) = policy(microbatch, TEMPERATURE)
        torch.testing.assert_close(microbatch.proximal_logprobs_T, logprobs_T.detach(), rtol=1e-5, atol=1e-5)


def test_a_rollout_is_scored_if_one_of_its_tokens_has_an_advantage(policy: PolicyLogprobs, groups: list[Group]) -> None:
    settings = TrainConfig.model_validate(SETTINGS | {"algorithm": {"proximal": "recomputed"}})
    whole = torch.ones(2, 4, dtype=torch.bool)
    by_token: list[list[tuple[float, ...] | None]] = [[(0.0, 1.0), (0.0, 0.0), None, None], [None] * 4]
    outcome = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0] * 4])
    scores = proximal_logprobs(settings, PlainScorer(policy), groups, outcome, whole, by_token)
    assert scores is not None
    assert [score is not None for score in scores[0]] == [True, False, False, True]


def test_a_single_turn_is_the_same_sequence_as_ever() -> None:
    prompt = Prompt("p", "?", (1, 2), "0", {})
    single = Completion((3, 4), (-0.5, -0.25), "text", "stop", (VersionSpan(0, 2, 0),))
    expected = TrainingSequence((1, 2, 3, 4), 2, (-0.5, -0.25), 0.5, 2.0, (-0.1, -0.2))
    assert list(sequences_of(prompt, single, 0.5, 2.0, (-0.1, -0.2))) == [expected]
    talked = replace(single, dialogue=make_dialogue())
    assert list(sequences_of(prompt, talked, 0.5, 2.0, (-0.1, -0.2))) == [expected]
