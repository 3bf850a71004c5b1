"""The losses of a reward model: values by hand, TRL's formula, no dependence on the split; and the statistics."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policy import make_tiny_policy
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from grpo.algorithm.comparisons import AnswerComparison, preference_batch
from grpo.algorithm.preference_loss import PairTotals
from grpo.algorithm.reward_models.loss import REWARD_SUMS, plackett_luce_loss, reward_terms
from grpo.algorithm.reward_models.statistics import pair_statistics
from grpo.config import RewardScheduleConfig
from grpo.policy.logprobs import load_model
from grpo.policy.score_scale import ScoreScale
from grpo.policy.scores import PolicyScores, load_scorer, score_tokens, set_padding


def reward(**keys: Any) -> RewardScheduleConfig:
    return RewardScheduleConfig.model_validate({"steps": 1, **keys})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> PolicyScores:
    model = load_scorer(str(folder), "float32")
    torch.manual_seed(3)
    model.score.weight.data.normal_()
    return PolicyScores(model)


def batch_of(scores: list[list[float]], margins: list[float]) -> tuple[Any, Tensor]:
    """A microbatch of answers, and the score at each of their tokens: only the last one counts."""
    made = [
        AnswerComparison.of((3, 4), [(5,) * (2 + place) for place in range(len(row))], margin)
        for row, margin in zip(scores, margins, strict=True)
    ]
    cut = preference_batch(made, [(0.0,) * len(row) for row in scores], ranks=1, microbatch_tokens=1000)
    values = [[9.0] * (1 + place) + [score] for row in scores for place, score in enumerate(row)]
    return cut.ranks[0].microbatches[0], torch.tensor([each for row in values for each in row])


def test_bradley_terry_is_trl_s_formula() -> None:
    scores, margins = [[1.2, -0.3], [0.1, 0.4]], [0.5, 0.0]
    microbatch, scores_T = batch_of(scores, margins)
    terms = reward_terms(reward(center=0.01), microbatch, scores_T)
    # trl/trainer/reward_trainer.py: -logsigmoid(chosen - rejected - margin).mean(), and
    # center_rewards_coefficient * mean((chosen + rejected) ** 2).
    chosen, rejected = torch.tensor(scores).unbind(1)
    expected = -torch.nn.functional.logsigmoid(chosen - rejected - torch.tensor(margins)).mean()
    expected += 0.01 * torch.mean((chosen + rejected) ** 2)
    assert float(terms.loss_sum) / 2 == pytest.approx(float(expected), rel=1e-6)
    sums = dict(zip(REWARD_SUMS, terms.sums.tolist(), strict=True))
    assert sums["comparisons"] == 2 and sums["rewards/accuracies"] == 1
    assert sums["rewards/margins"] == pytest.approx(1.5 - 0.3)


def test_plackett_luce_by_hand() -> None:
    (microbatch, scores_T) = batch_of([[0.5, -1.0, 2.0], [0.3, 0.1]], [0.0, 0.0])
    loss = float(reward_terms(reward(loss="plackett_luce"), microbatch, scores_T).loss_sum)
    first = math.log(math.exp(0.5) + math.exp(-1.0) + math.exp(2.0)) - 0.5
    second = math.log(math.exp(-1.0) + math.exp(2.0)) + 1.0
    pair = math.log1p(math.exp(-0.2))
    assert loss == pytest.approx((first + second) / 2 + pair, rel=1e-5)
    none = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
    assert plackett_luce_loss(torch.ones(1), *none).item() == 0


def step(scorer: PolicyScores, settings: RewardScheduleConfig, ranks: int, budget: int) -> dict[str, Tensor]:
    draw = random.Random(7)
    made = [
        AnswerComparison.of(
            [draw.randrange(3, 20) for _ in range(draw.randint(2, 5))],
            [[draw.randrange(3, 20) for _ in range(draw.randint(2, 9))] for _ in range(2 + number % 2)],
        )
        for number in range(7)
    ]
    cut = preference_batch(made, [(0.0,) * len(one.answers) for one in made], ranks=ranks, microbatch_tokens=budget)
    scorer.zero_grad()
    totals = PairTotals(None, REWARD_SUMS)
    for part in cut.ranks:
        for microbatch in part.microbatches:
            terms = reward_terms(settings, microbatch, scorer(microbatch)[0])
            (terms.loss_sum / part.denominator).backward()  # type: ignore[no-untyped-call]
            totals.add(terms)
    totals.read()
    metrics = totals.metrics(cut.ranks[0].denominator)
    gradients = {name: each.grad.clone() for name, each in scorer.named_parameters() if each.grad is not None}
    return {name: torch.tensor(value) for name, value in metrics.items()} | gradients


@pytest.mark.parametrize("settings", [reward(center=0.1), reward(loss="plackett_luce")], ids=["pairs", "rankings"])
def test_no_split_changes_loss_gradient_or_metrics(scorer: PolicyScores, settings: RewardScheduleConfig) -> None:
    expected = step(scorer, settings, 1, 1000)
    assert float(expected["model.score.weight"].norm()) > 1e-3
    for ranks, budget in ((2, 33), (9, 33)):
        found = step(scorer, settings, ranks, budget)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=2e-5, atol=2e-6, msg=f"{name} {ranks} {budget}")


def test_a_new_head_is_zero_and_the_policy_is_kept(folder: Path) -> None:
    model, policy = load_scorer(str(folder), "float32"), load_model(str(folder), "float32")
    assert not model.score.weight.any() and model.config.num_labels == 1
    kept = dict(policy.named_parameters())
    for name, tensor in model.model.named_parameters():
        torch.testing.assert_close(tensor, kept[f"model.{name}"], rtol=0, atol=0)


def test_packed_scores_are_those_of_transformers(scorer: PolicyScores, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_padding(scorer.model, tokenizer)
    scorer.model.save_pretrained(tmp_path)
    end = tokenizer.eos_token_id
    answers = [[5, 6, 7, end], [8, end]]
    # The end token stands there twice: the model reads the first one, and scores there.
    made = AnswerComparison.of((3, 4), [[*answer, end] for answer in answers])
    cut = preference_batch([made], [(0.0, 0.0)], ranks=1, microbatch_tokens=100)
    (microbatch,) = cut.ranks[0].microbatches
    packed = scorer(microbatch)[0][microbatch.lengths_S.cumsum(0) - 1]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    padded = torch.tensor([[3, 4, 5, 6, 7, end], [3, 4, 8, end, tokenizer.pad_token_id, tokenizer.pad_token_id]])
    scores = theirs(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits.squeeze(1)
    torch.testing.assert_close(packed, scores, rtol=0, atol=1e-5)
    ours = score_tokens(load_scorer(str(tmp_path), "float32", "sdpa"), [[3, 4, *answer] for answer in answers])
    assert ours == pytest.approx(packed.tolist(), abs=1e-5)
    # If the end token is the padding, transformers would score the token before it, so it must refuse batches.
    tokenizer.pad_token = tokenizer.eos_token
    set_padding(scorer.model, tokenizer)
    assert scorer.model.config.pad_token_id is None


def test_a_model_with_several_labels_is_refused(folder: Path, tmp_path: Path) -> None:
    shape = AutoConfig.from_pretrained(folder, num_labels=3)
    shape.architectures = ["Qwen3ForSequenceClassification"]
    shape.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 3 labels, and a reward model has a single score; take .*num_labels=1"):
        load_scorer(str(tmp_path), "float32")


def test_the_scale_is_read_as_written_and_a_flat_one_is_refused(tmp_path: Path) -> None:
    assert ScoreScale.read(tmp_path) is None
    scale = ScoreScale.of([1.0, 3.0, 5.0, 7.0])
    assert (scale.mean, scale.deviation, scale.answers) == (4.0, pytest.approx(math.sqrt(5)), 4)
    scale.write(tmp_path)
    assert ScoreScale.read(tmp_path) == scale
    ScoreScale.of([2.0, 2.0]).write(tmp_path)
    with pytest.raises(ValueError, match="all equal"):
        ScoreScale.read(tmp_path)


def test_statistics_by_hand() -> None:
    scores = [[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [3.0, 2.0, 0.0]]
    lengths = [[10, 10], [5, 20], [4, 8], [30, 20, 19]]
    found = pair_statistics(scores, lengths)
    # Right, wrong, a tie, and a ranking whose three pairs count as one row.
    assert found["accuracies"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["accuracies_low"] < found["accuracies"] < found["accuracies_high"]
    assert found["margins"] == pytest.approx((1 - 3 + 0 + (1 + 3 + 2) / 3) / 4)
    # "Longer is better" is right in the ranking, half right in the first pair.
    assert found["length_only_accuracies"] == pytest.approx(max(1.5, 2.5) / 4)
    # The first pair, and the 20 and 19 tokens of the ranking.
    assert found["matched_length_accuracies"] == 1.0
    centred = [np.array(row) - np.mean(row) for row in scores], [np.array(row) - np.mean(row) for row in lengths]
    expected = np.corrcoef(np.concatenate(centred[0]), np.concatenate(centred[1]))[0, 1]
    assert found["length_correlation"] == pytest.approx(expected)


def test_a_calibrated_model_has_no_calibration_error() -> None:
    # A margin of log 3 is a probability of 3/4, and three of four pairs are right.
    gap = math.log(3)
    rows = [[gap, 0.0]] * 3 + [[0.0, gap]]
    assert pair_statistics(rows, [[1, 1]] * 4)["calibration_error"] == pytest.approx(0, abs=1e-9)
    sure = pair_statistics([[9.0, 0.0]] * 3 + [[0.0, 9.0]], [[1, 1]] * 4)
    assert sure["calibration_error"] == pytest.approx(0.25, abs=1e-3)
