"""The objective as composed: no split of a batch changes loss or gradient, whatever the choices; what they refuse."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from documented_metrics import is_documented
from test_batching import make_group
from tiny_policy import TEMPERATURE, sampled_groups, tiny_logprobs
from torch import Tensor

from grpo.algorithm.choices import advantages_of, aggregation_of
from grpo.algorithm.minibatches import minibatches
from grpo.algorithm.objective import LOG_RATIO_BINS, LOG_RATIO_LIMIT, carries_loss, policy_terms, supervised_terms
from grpo.algorithm.packing import Microbatch, TrainingSequence, pack
from grpo.algorithm.totals import Totals, ratio_quantiles
from grpo.config.algorithm import KL, Advantage, Aggregation, AlgorithmConfig, Ratio
from grpo.config.presets import PRESETS, Preset
from grpo.rollout.groups import reward_tensors
from grpo.types import Group

if TYPE_CHECKING:
    from grpo.policy.logprobs import PolicyLogprobs


CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    **{name: {"preset": name} for name in get_args(Preset)},
    "gspo-token": {"preset": "gspo", "ratio": "sequence_token"},
    "dual clip": {"dual_clip": 1.3},
    "per prompt": {"aggregation": "prompt_mean"},
    "k2": {"kl": "k2", "kl_coefficient": 0.1},
    "corrected k1": {"kl": "k1", "kl_coefficient": 0.1, "kl_corrected": True},
    "entropy": {"entropy_coefficient": 0.1},
    "truncated tokens": {"proximal": "recomputed", "importance_weight": "token", "importance_cap": 1.1},
    "truncated sequences": {"proximal": "recomputed", "importance_weight": "sequence"},
    "icepop": {"proximal": "recomputed", "mismatch_mask": "token", "mask_low": 0.8, "mask_high": 1.2},
    "sequence mask": {"mismatch_mask": "sequence", "mask_low": 0.7, "mask_high": 1.4},
    "geometric mask": {"mismatch_mask": "geometric", "mask_low": 0.9, "mask_high": 1.1},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyLogprobs:
    return tiny_logprobs(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def groups(policy: PolicyLogprobs) -> list[Group]:
    """Completions of many lengths and rewards, one without; one group without variance; some cut at the limit."""
    return sampled_groups(policy, 0.3, [[1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, None, 1.0, 0.2]])


def proximal_of(groups: Sequence[Group]) -> list[list[tuple[float, ...] | None]]:
    """Between sampler and learner, the same every time."""
    noise = random.Random(3)
    return [
        [tuple(value + noise.gauss(0, 0.2) for value in one.completion.logprobs) for one in group.rollouts]
        for group in groups
    ]


def step(
    policy: PolicyLogprobs, groups: Sequence[Group], algorithm: AlgorithmConfig, ranks: int, microbatch_tokens: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Loss, gradient and metrics of one optimizer step, added up as LearnerRank.step and DeepSpeed do."""
    rewards_PG, valid_PG = reward_tensors(groups)
    advantages_PG = advantages_of(algorithm, rewards_PG, valid_PG)
    (cut,) = minibatches(
        groups,
        advantages_PG,
        count=1,
        ranks=ranks,
        microbatch_tokens=microbatch_tokens,
        skip_without_advantage=algorithm.only_advantages_teach,
        carries_loss_PG=carries_loss(algorithm, groups, rewards_PG, valid_PG),
        proximal=proximal_of(groups) if algorithm.proximal == "recomputed" else None,
        aggregation=aggregation_of(algorithm, 20),
    )
    policy.zero_grad()
    totals = Totals()
    for rank in cut.ranks:
        for microbatch in rank.microbatches:
            logprobs_T, entropy_T = policy(microbatch, TEMPERATURE, "gradient")
            reference_T = microbatch.old_logprobs_T - 0.1 if algorithm.kl_in_loss else None
            terms = policy_terms(algorithm, microbatch, logprobs_T, entropy_T, reference_T)
            (terms.loss_sum * (ranks / rank.denominator) / ranks).backward()  # type: ignore[no-untyped-call]
            totals.add(terms)
    gradient = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return gradient, totals.metrics(cut.ranks[0].denominator, algorithm)


@pytest.mark.parametrize("choice", list(CHOICES))
def test_no_split_changes_loss_gradient_or_metrics(policy: PolicyLogprobs, groups: list[Group], choice: str) -> None:
    algorithm = AlgorithmConfig.model_validate(CHOICES[choice])
    whole, expected = step(policy, groups, algorithm, 1, 1000)
    assert max(float(tensor.abs().max()) for tensor in whole.values()) > 1e-3
    for ranks, microbatch_tokens in [(1, 17), (2, 24), (3, 17), (5, 40)]:
        gradient, metrics = step(policy, groups, algorithm, ranks, microbatch_tokens)
        assert gradient.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(gradient[name], tensor, rtol=2e-5, atol=3e-6)
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("choice", list(CHOICES))
def test_every_choice_has_a_gradient_of_its_own(policy: PolicyLogprobs, groups: list[Group], choice: str) -> None:
    """A choice that did nothing would have the default's."""
    algorithm = AlgorithmConfig.model_validate(CHOICES[choice])
    found, _ = step(policy, groups, algorithm, 1, 1000)
    default, _ = step(policy, groups, AlgorithmConfig(), 1, 1000)
    size = math.sqrt(sum(float(tensor.square().sum()) for tensor in default.values()))
    apart = math.sqrt(sum(float((found[name] - default[name]).square().sum()) for name in default))
    assert (apart < 1e-9) if choice == "default" else (apart > 1e-3 * size)


def test_microbatches_of_filler_only_have_no_gradient(policy: PolicyLogprobs) -> None:
    for choice, keys in CHOICES.items():
        algorithm = AlgorithmConfig.model_validate(keys)
        sequence = TrainingSequence((3, 4, 5, 6), 2, (-1.0, -2.0), 0.0, weight=0.0, proximal_logprobs=(-1.0, -2.0))
        microbatch = pack([sequence])
        logprobs_T, entropy_T = policy(microbatch, 1.0, "gradient")
        terms = policy_terms(algorithm, microbatch, logprobs_T, entropy_T, microbatch.old_logprobs_T + 500.0)
        (gradient_T,) = torch.autograd.grad(terms.loss_sum, logprobs_T)
        assert gradient_T.tolist() == [0.0] * 2, choice
        assert float(terms.sums[1]) == 0.0


def one_microbatch(ratios: Sequence[float], advantage: float = 1.0) -> tuple[Microbatch, Tensor]:
    """A completion whose tokens have these ratios."""
    old = tuple(-1.0 - 0.1 * place for place in range(len(ratios)))
    batch = pack([TrainingSequence((1, *range(len(ratios))), 1, old, advantage)])
    logprobs_T = batch.old_logprobs_T + torch.tensor(ratios).log()
    return batch, logprobs_T.requires_grad_()


def measured(ratios: Sequence[float], **keys: Any) -> dict[str, float]:
    batch, logprobs_T = one_microbatch(ratios)
    algorithm = AlgorithmConfig.model_validate(keys)
    totals = Totals()
    totals.add(policy_terms(algorithm, batch, logprobs_T, torch.full_like(logprobs_T, 0.5), None))
    return totals.metrics(float(len(ratios)), algorithm)


def test_metrics_by_hand() -> None:
    found = measured([1.0, 1.0, 2.0, 0.5], clip_low=0.4, clip_high=0.5)
    # 1 + 1 + 1.5 + 0.5: the third is held at the upper edge, and no ratio is below the lower one with A > 0 that binds.
    assert found["loss"] == pytest.approx(-4.0 / 4)
    assert found["clip_high_share"] == 0.25 and found["clip_low_share"] == 0.0
    assert found["ratio_max"] == pytest.approx(2.0)
    # (1 + 1 + 2 + 0.5)^2 / (4 (1 + 1 + 4 + 0.25)).
    assert found["effective_sample_share"] == pytest.approx(4.5**2 / (4 * 6.25))
    assert found["entropy"] == pytest.approx(0.5)
    # Mean of r - log r - 1.
    assert found["mismatch_kl"] == pytest.approx((2 - math.log(2) - 1 + 0.5 + math.log(2) - 1) / 4)
    assert not {"kl_reference", "importance_weight", "masked_share"} & found.keys()


def test_every_metric_is_documented(policy: PolicyLogprobs, groups: list[Group]) -> None:
    algorithm = AlgorithmConfig(
        kl="k3", kl_coefficient=0.1, proximal="recomputed", importance_weight="token", mismatch_mask="token"
    )
    _, metrics = step(policy, groups, algorithm, 1, 1000)
    assert {"kl_reference", "importance_weight", "masked_share"} <= metrics.keys()
    assert [name for name in metrics if not is_documented(f"learner/{name}")] == []


def test_masked_tokens_are_counted_and_stay_in_the_denominator() -> None:
    found = measured([1.0, 6.0, 1.0, 0.1], mismatch_mask="token", clip_low=1.0, clip_high=10.0)
    assert found["masked_share"] == 0.5
    assert found["loss"] == pytest.approx(-2.0 / 4)


@pytest.mark.parametrize("ratio", get_args(Ratio))
def test_a_masked_token_has_no_gradient_however_far_off_it_is(ratio: Ratio) -> None:
    """The second token's ratio to the sampler, e^99, is infinite in float32."""
    algorithm = AlgorithmConfig(
        ratio=ratio, clip_low=0.2, clip_high=1e6, mismatch_mask="token", mask_low=0.5, mask_high=2.0
    )
    batch = pack([TrainingSequence((1, 2, 3, 4), 1, (-1.0, -100.0, -1.0), -1.0)])
    logprobs_T = torch.full((3,), -1.0, requires_grad=True)
    terms = policy_terms(algorithm, batch, logprobs_T, logprobs_T.detach(), None)
    (gradient_T,) = torch.autograd.grad(terms.loss_sum, logprobs_T)
    assert torch.isfinite(gradient_T).all() and torch.isfinite(terms.loss_sum)
    assert float(gradient_T[1]) == 0
    assert ratio not in ("token", "cispo", "soft") or gradient_T[0] == gradient_T[2] > 0


def test_quantiles_come_from_the_counts() -> None:
    ratios = torch.linspace(0.5, 2.0, 1001)
    counts = torch.histc(ratios.log(), LOG_RATIO_BINS, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    found = ratio_quantiles(counts)
    for name, share in (("ratio_p01", 0.01), ("ratio_p50", 0.5), ("ratio_p99", 0.99)):
        assert found[name] == pytest.approx(float(ratios.quantile(share)), rel=6e-3)


def test_a_recomputed_proximal_policy_takes_the_sampler_s_place_in_the_ratio() -> None:
    sequence = TrainingSequence((1, 2), 1, (-2.0,), 1.0, proximal_logprobs=(-1.0,))
    batch = pack([sequence])
    logprobs_T = torch.tensor([-1.0 + math.log(1.1)], requires_grad=True)
    plain = AlgorithmConfig(proximal="recomputed")
    alone = policy_terms(plain, batch, logprobs_T, logprobs_T.detach(), None)
    assert float(alone.loss_sum.detach()) == pytest.approx(-1.1)
    # The weight from sampler to proximal policy, e, is held at 2.
    weighted = AlgorithmConfig(proximal="recomputed", importance_weight="token", importance_cap=2.0)
    terms = policy_terms(weighted, batch, logprobs_T, logprobs_T.detach(), None)
    assert float(terms.loss_sum.detach()) == pytest.approx(-2.2)
    assert float(torch.autograd.grad(terms.loss_sum, logprobs_T)[0][0]) == pytest.approx(-2.2)


def test_weights_and_masks_look_from_the_sampler_to_where_the_ratio_starts() -> None:
    """And not to where the policy has gone since, but where the ratio starts from the sampler."""

    def loss_of(proximal: tuple[float, ...] | None, **keys: Any) -> float:
        batch = pack([TrainingSequence((1, 2), 1, (-2.0,), 1.0, proximal_logprobs=proximal)])
        algorithm = AlgorithmConfig(
            proximal="recomputed" if proximal else "rollout", clip_high=9.0, mask_high=2.0, **keys
        )
        logprobs_T = torch.tensor([-2.0 + math.log(3.0)])
        return float(policy_terms(algorithm, batch, logprobs_T, logprobs_T, None).loss_sum)

    near = (-2.0 + math.log(1.5),)
    # The policy's ratio to the sampler is 3, of it 1.5 from the sampler to the proximal policy and 2 from there.
    assert loss_of(near, importance_weight="token", importance_cap=9.0) == pytest.approx(-2.0 * 1.5)
    assert loss_of(near, mismatch_mask="token") == pytest.approx(-2.0)
    assert loss_of(None) == pytest.approx(-3.0)
    assert loss_of(None, mismatch_mask="token") == 0.0


def test_the_entropy_bonus_raises_entropy(policy: PolicyLogprobs) -> None:
    batch = pack([TrainingSequence((3, 4, 5, 6, 7), 2, (-1.0,) * 3, 0.0)])
    algorithm = AlgorithmConfig(entropy_coefficient=1.0)
    policy.zero_grad()
    logprobs_T, entropy_T = policy(batch, 1.0, "gradient")
    terms = policy_terms(algorithm, batch, logprobs_T, entropy_T, None)
    terms.loss_sum.backward()  # type: ignore[no-untyped-call]
    before = float((entropy_T.detach() * batch.weights_T).sum())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.sub_(1e-4 * parameter.grad)
        after = float((policy(batch, 1.0, "value")[1] * batch.weights_T).sum())
        for parameter in policy.parameters():
            parameter.add_(1e-4 * parameter.grad)
    assert after > before
    assert not policy(batch, 1.0, "value")[1].requires_grad


def test_overlong_and_refilled_groups_carry_no_loss(groups: list[Group]) -> None:
    rewards_PG, valid_PG = reward_tensors(groups)

    def which(**keys: Any) -> list[list[int]]:
        found: list[list[int]] = carries_loss(AlgorithmConfig(**keys), groups, rewards_PG, valid_PG).int().tolist()
        return found

    assert which() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 1]]
    assert which(overlong_filter=True) == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1]]
    assert which(refill_rounds=1) == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]]
    assert which(refill_rounds=1, overlong_filter=True) == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_what_carries_no_loss_is_in_no_denominator(aggregation: Aggregation) -> None:
    groups = [make_group(1, [2, 4]), make_group(2, [1, 3])]
    (found,) = minibatches(
        groups,
        torch.tensor([[1.0, -1.0], [0.0, 0.0]]),
        count=1,
        ranks=1,
        microbatch_tokens=64,
        skip_without_advantage=True,
        carries_loss_PG=torch.tensor([[True, False], [True, True]]),
        aggregation=aggregation_of(AlgorithmConfig(aggregation=aggregation), 10),
    )
    expected = {"token_mean": 6.0, "sequence_mean": 3.0, "constant": 30.0, "prompt_mean": 2.0}
    assert found.ranks[0].denominator == expected[aggregation]
    weights = {"token_mean": 1.0, "sequence_mean": 0.5, "constant": 1.0, "prompt_mean": 0.5}
    (microbatch,) = found.ranks[0].microbatches
    assert microbatch.weights_T[microbatch.weights_T > 0].tolist() == [weights[aggregation]] * 2


def test_presets_expand_and_yield_to_what_is_given_beside_them() -> None:
    assert set(PRESETS) == set(get_args(Preset))
    for name, keys in PRESETS.items():
        found = AlgorithmConfig.model_validate({"preset": name})
        assert {key: getattr(found, key) for key in keys} == keys
        assert list(found.problems(group_size=8)) == [], name
        # The expanded section, read again, is the same.
        assert AlgorithmConfig.model_validate(found.model_dump()) == found
    own = AlgorithmConfig.model_validate({"preset": "gspo", "clip_low": 0.1})
    assert (own.ratio, own.clip_low, own.clip_high) == ("sequence", 0.1, 4e-4)


def test_every_key_and_choice_is_documented() -> None:
    document = (Path(__file__).parents[3] / "docs" / "objectives.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z][a-z0-9_+]*", document))
    assert [key for key in AlgorithmConfig.model_fields if key not in words] == []
    choices = [*get_args(Advantage), *get_args(Ratio), *get_args(Aggregation), *get_args(KL), *get_args(Preset)]
    assert [choice for choice in choices if choice not in words] == []


@pytest.mark.parametrize(
    ("keys", "group_size", "told"),
    [
        ({}, 1, r"rollout\.group_size=1 .* use 2 or more, or algorithm\.advantage=reinforce\+\+"),
        ({"advantage": "reinforce++"}, 1, None),
        ({"advantage": "pass_at_k", "pass_k": 8}, 8, r"algorithm\.pass_k=8 must be smaller than rollout\.group_size=8"),
        ({"kl_coefficient": 0.1}, 8, r"has no reference .* set algorithm\.kl=k3"),
        ({"kl": "k3"}, 8, r"algorithm\.kl=k3 has no weight.* set algorithm\.kl_coefficient"),
        ({"preset": "grpo", "kl_coefficient": 0}, 8, r"or algorithm\.kl=none"),
        ({"clip_high": 28}, 8, r"clip_high=28 .* no percentage"),
        ({"preset": "cispo", "clip_high": 28}, 8, None),
        ({"kl": "k1", "kl_coefficient": 0.1}, 8, r"does not depend on the reference; set algorithm\.kl_corrected"),
        ({"kl": "k1", "kl_coefficient": 0.1, "kl_place": "reward"}, 8, None),
        ({"kl": "k3", "kl_coefficient": 0.1, "kl_place": "reward", "kl_corrected": True}, 8, r"has no divergence; set"),
        (
            {"preset": "maxrl", "kl": "k1", "kl_coefficient": 0.1, "kl_place": "reward"},
            8,
            r"set algorithm\.kl_place=loss",
        ),
        ({"reference_refresh": 10}, 8, r"reference_refresh=10 has no reference"),
        ({"importance_weight": "token"}, 8, r"set algorithm\.proximal=recomputed"),
        ({"mismatch_mask": "token", "mask_low": 1.5}, 8, r"mask_low=1\.5 .* both sides of 1"),
        ({"ratio": "cispo", "dual_clip": 3.0}, 8, r"dual_clip=3\.0 .* algorithm\.ratio=cispo does not clip"),
        ({"dual_clip": 1.1}, 8, r"must lie above the upper edge"),
        ({"turn_rewards": {}}, 8, None),
        (
            {"turn_rewards": {}, "preset": "maxrl"},
            8,
            r"turn_rewards compares turns.* use algorithm\.advantage=group_std",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(keys: dict[str, Any], group_size: int, told: str | None) -> None:
    found = list(AlgorithmConfig.model_validate(keys).problems(group_size))
    assert len(found) == (told is not None), found
    assert told is None or re.search(told, found[0]), found


def test_supervised_terms_are_the_weighted_negative_log_likelihood() -> None:
    rows = [TrainingSequence((1, 2, 3), 1, (0.0, 0.0), 0.0), TrainingSequence((4, 5), 1, (0.0,), 0.0, weight=0.0)]
    microbatch = pack(rows)
    terms = supervised_terms(microbatch, torch.tensor([-1.0, -0.5, -9.0]), torch.tensor([0.25, 0.5, 9.0]))
    assert terms.loss_sum.item() == 1.5
    totals = Totals()
    totals.add(terms)
    assert totals.metrics(3.0, None) == {"loss": 0.5, "entropy": 0.375}
    empty = supervised_terms(pack(rows[1:]), torch.tensor([-9.0]), torch.tensor([9.0]))
    nothing = Totals()
    nothing.add(empty)
    assert nothing.metrics(1.0, None) == {"loss": 0.0}


def test_the_largest_ratio_may_be_below_1() -> None:
    microbatch = pack(
        [TrainingSequence((1, 2, 3), 1, (-0.5, -0.5), 1.0), TrainingSequence((4, 5), 1, (-9.0,), 0.0, 0.0)]
    )
    logprobs_T = torch.tensor([-1.0, -0.9, -0.1])
    terms = policy_terms(AlgorithmConfig(), microbatch, logprobs_T, logprobs_T, None)
    assert float(terms.ratio_max) == pytest.approx(math.exp(-0.4)), "the token without loss does not count"
