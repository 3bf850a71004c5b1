"""The losses of preferences: values by hand, agreement with TRL's formulas, and no dependence on the split."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_policy import tiny_logprobs
from torch import Tensor

from grpo.algorithm.comparisons import AnswerComparison, ReferenceLogps, pack_comparisons, preference_batch
from grpo.algorithm.preference_loss import (
    PairTotals,
    ipo_loss,
    preference_terms,
    sigmoid_loss,
)
from grpo.config import DpoScheduleConfig

if TYPE_CHECKING:
    from grpo.policy.logprobs import PolicyLogprobs


def dpo(**keys: Any) -> DpoScheduleConfig:
    return DpoScheduleConfig.model_validate({"steps": 1, **keys})


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def test_losses_by_hand() -> None:
    gap_P = torch.tensor([0.0, 1.5, -0.7])
    expected = [math.log(2), -log_sigmoid(1.5), -log_sigmoid(-0.7)]
    assert sigmoid_loss(gap_P).tolist() == pytest.approx(expected, rel=1e-6)
    assert sigmoid_loss(gap_P, torch.tensor([0.0, 0.5, 2.0])).tolist() == pytest.approx(
        [math.log(2), -log_sigmoid(1.0), -log_sigmoid(-2.7)], rel=1e-6
    )
    conservative = [-0.9 * log_sigmoid(gap) - 0.1 * log_sigmoid(-gap) for gap in gap_P.tolist()]
    assert sigmoid_loss(gap_P, label_smoothing=0.1).tolist() == pytest.approx(conservative, rel=1e-6)
    # 1 / (2 beta) is 2.5.
    assert ipo_loss(gap_P, 0.2).tolist() == pytest.approx([6.25, 1.0, 10.24], rel=1e-6)


def test_conservative_dpo_is_least_where_the_policy_believes_the_noise() -> None:
    gap_P = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    (gradient,) = torch.autograd.grad(sigmoid_loss(gap_P, label_smoothing=0.1).sum(), gap_P)
    assert float(gradient) == pytest.approx(0.0, abs=1e-6)


# A ranking of three answers of 2, 1 and 3 tokens, and a pair of 1 and 2 tokens.
LENGTHS = ((2, 1, 3), (1, 2))
REFERENCES: list[ReferenceLogps] = [(-3.0, -1.0, -6.5), (-2.0, -2.5)]


def comparisons(margin: float = 0.0) -> list[AnswerComparison]:
    return [
        AnswerComparison.of((3, 4 + number), [tuple(range(5, 5 + length)) for length in lengths], margin)
        for number, lengths in enumerate(LENGTHS)
    ]


def test_terms_and_metrics_by_hand() -> None:
    batch = pack_comparisons(comparisons(), REFERENCES)
    logprobs_T = torch.tensor([-1.0, -1.5, -2.0, -1.0, -2.0, -3.0, -0.5, -2.0, -2.0]).requires_grad_()
    terms = preference_terms(dpo(beta=0.5, sft_weight=0.2), batch, logprobs_T)
    logps = [[-2.5, -2.0, -6.0], [-0.5, -4.0]]
    rewards = [[0.25, -0.5, 0.25], [0.75, -0.75]]
    pairs = [(0, 1), (0, 2), (1, 2)]
    ranked = sum(-log_sigmoid(rewards[0][better] - rewards[0][worse]) for better, worse in pairs) / 3
    nll = 2.5 / 2 + 0.5
    loss = ranked - log_sigmoid(1.5) + 0.2 * nll
    assert float(terms.loss_sum.detach()) == pytest.approx(loss, rel=1e-6)
    totals = PairTotals()
    totals.add(terms)
    totals.read()
    found = totals.metrics(2.0)
    assert found == {
        "loss": pytest.approx(loss / 2),
        "rewards/chosen": pytest.approx(((0.25 + 0.25 - 0.5) / 3 + 0.75) / 2),
        "rewards/rejected": pytest.approx(((-0.5 + 0.25 + 0.25) / 3 - 0.75) / 2),
        # A pair of equal rewards is not right.
        "rewards/accuracies": pytest.approx((1 / 3 + 1) / 2),
        "rewards/margins": pytest.approx(((0.75 + 0 - 0.75) / 3 + 1.5) / 2, abs=1e-7),
        "logps/chosen": pytest.approx(((logps[0][0] * 2 + logps[0][1]) / 3 + logps[1][0]) / 2),
        "logps/rejected": pytest.approx(((logps[0][1] + logps[0][2] * 2) / 3 + logps[1][1]) / 2),
    }


def test_ipo_compares_means_over_tokens_and_margins_reach_the_loss() -> None:
    logprobs_T = torch.tensor([-1.0, -1.5, -2.0, -1.0, -2.0, -3.0, -0.5, -2.0, -2.0])
    pair = pack_comparisons(comparisons()[1:], REFERENCES[1:])
    # (-0.5 + 2) / 1 - (-4 + 2.5) / 2 = 2.25, and 1 / (2 beta) = 2.
    assert float(preference_terms(dpo(loss="ipo", beta=0.25), pair, logprobs_T[6:]).loss_sum) == pytest.approx(0.0625)
    with_margin = pack_comparisons(comparisons(0.4)[1:], REFERENCES[1:])
    assert float(preference_terms(dpo(beta=0.5), with_margin, logprobs_T[6:]).loss_sum) == pytest.approx(
        -log_sigmoid(1.1)
    )


def trl_trainer() -> str:
    """The source of TRL's trainer, which is not imported: a folder or wheel on the path is enough."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("compares with TRL 1.16, which is not installed (CONTRIBUTING.md has the commands)")
    loader: Any = found.loader
    return str(loader.get_data(str(Path(found.origin).parent / "trainer" / "dpo_trainer.py")).decode())


def trl_branches(text: str) -> dict[str, str]:
    """The statements of TRL's loss types, by their names: a chain of `if loss_type == "name":`."""
    lines = text[text.index('            if loss_type == "sigmoid":') :].splitlines()
    branches: dict[str, str] = {}
    for head, body in itertools.groupby(lines, lambda line: re.match(r" {12}(?:el)?if loss_type == \"(\w+)\":$", line)):
        if head:
            name = head[1]
        elif name not in branches:
            branches[name] = "\n".join(line[16:] for line in body if line.startswith(" " * 16))
    return branches


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sft", "aot"])
def test_losses_are_those_of_trl(name: str) -> None:
    statements = trl_branches(trl_trainer())[name]
    generator = torch.Generator().manual_seed(3)
    pairs = [AnswerComparison.of((3, 4), [range(5, 5 + a), range(5, 5 + b)]) for a, b in ((2, 2), (2, 4))]
    references = [(-3.0, -1.0), (-2.0, -2.5)]
    batch = pack_comparisons(pairs, references)
    rows = [-2 * torch.rand(length, generator=generator) for length in batch.lengths_S.tolist()]
    logps = torch.stack([row.sum() for row in rows]) - torch.tensor([value for each in references for value in each])
    mask = torch.tensor([[1.0] * 2 + [0.0] * 2] * 2 + [[1.0] * 2 + [0.0] * 2, [1.0] * 4])
    padded = torch.stack([torch.nn.functional.pad(row, (0, 4 - len(row))) for row in rows])[[0, 2, 1, 3]]
    theirs: dict[str, Any] = {
        "self": type("Trainer", (), {"beta": 0.3, "label_smoothing": 0.1})(),
        "chosen_scores": logps[0::2],
        "rejected_scores": logps[1::2],
        "delta_score": logps[0::2] - logps[1::2],
        "completion_mask": mask,
        "shift_completion_mask": mask,
        "per_token_logps": padded,
        "chosen_logratios": logps[0::2],
        "rejected_logratios": logps[1::2],
        "chosen_logps": logps[0::2],
        "rejected_logps": logps[1::2],
        "ref_chosen_logps": torch.zeros(2),
        "ref_rejected_logps": torch.zeros(2),
        "torch": torch,
        "F": torch.nn.functional,
    }
    keys: dict[str, Any] = {"beta": 0.3}
    if name == "aot":
        # Of AOT only the smoothed terms are compared: it first sorts the gaps, and a sum does not see that.
        statements = "delta = delta_score\nper_sequence_loss = " + statements.split("per_sequence_loss = ", 1)[1]
        keys["label_smoothing"] = 0.1
    exec(statements, theirs)
    expected = float(theirs["per_sequence_loss"].mean())
    if name == "sft":
        # Only the term: DPO's own part is taken off again. Both chosen answers have the same length, as TRL takes the
        # mean over all tokens of the batch.
        with_term, without = (preference_terms(dpo(sft_weight=w), batch, torch.cat(rows)).loss_sum for w in (1.0, 0.0))
        found = float(with_term - without) / 2
    else:
        loss = name if name == "ipo" else "sigmoid"
        found = float(preference_terms(dpo(loss=loss, **keys), batch, torch.cat(rows)).loss_sum) / 2
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyLogprobs:
    return tiny_logprobs(tmp_path_factory.mktemp("policy"))


def random_comparisons(count: int) -> tuple[list[AnswerComparison], list[ReferenceLogps]]:
    generator = random.Random(5)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, 20) for _ in range(length))

    made = [
        AnswerComparison.of(
            ids(generator.randint(2, 5)), [ids(generator.randint(1, 9)) for _ in range(2 + number % 2)], 0.1
        )
        for number in range(count)
    ]
    return made, [tuple(generator.uniform(-30, -5) for _ in each.answers) for each in made]


def step(policy: PolicyLogprobs, settings: DpoScheduleConfig, ranks: int, budget: int) -> dict[str, Tensor]:
    made, references = random_comparisons(7)
    cut = preference_batch(made, references, ranks=ranks, microbatch_tokens=budget)
    policy.zero_grad()
    totals = PairTotals()
    for part in cut.ranks:
        for microbatch in part.microbatches:
            terms = preference_terms(settings, microbatch, policy(microbatch, 1.0)[0])
            (terms.loss_sum / part.denominator).backward()  # type: ignore[no-untyped-call]
            totals.add(terms)
    totals.read()
    metrics = totals.metrics(cut.ranks[0].denominator)
    gradients = {name: each.grad.clone() for name, each in policy.named_parameters() if each.grad is not None}
    return {name: torch.tensor(value) for name, value in metrics.items()} | gradients


@pytest.mark.parametrize(
    "settings", [dpo(sft_weight=0.3, label_smoothing=0.1), dpo(loss="ipo")], ids=["sigmoid", "ipo"]
)
def test_no_split_changes_loss_gradient_or_metrics(policy: PolicyLogprobs, settings: DpoScheduleConfig) -> None:
    expected = step(policy, settings, 1, 1000)
    # Of 9 ranks, at least two have filler alone.
    for ranks, budget in ((1, 40), (2, 33), (3, 60), (9, 33)):
        found = step(policy, settings, ranks, budget)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=2e-5, atol=2e-6, msg=f"{name} {ranks} {budget}")


def test_the_prompt_is_computed_once_and_a_comparison_that_does_not_fit_is_refused() -> None:
    made = comparisons()
    cut = preference_batch(made, REFERENCES, ranks=1, microbatch_tokens=100)
    (microbatch,) = cut.ranks[0].microbatches
    assert len(microbatch.input_ids_N) == sum(each.computed_tokens for each in made) == 5 + 3
    with pytest.raises(ValueError, match=r"5 tokens does not fit learner\.microbatch_tokens=4"):
        preference_batch(made, REFERENCES, ranks=1, microbatch_tokens=4)
