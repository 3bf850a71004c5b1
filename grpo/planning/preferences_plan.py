"""The part of `grpo check` that shows the preferences of a config: rows, lengths, loss, and the first comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from grpo import config
from grpo.algorithm.comparisons import AnswerComparison
from grpo.config.fine_tuning.schedules import PreferenceScheduleConfig
from grpo.data.bad_rows import lines_of
from grpo.data.preferences import PreferenceSet, load_preferences
from grpo.planning.first_prompt import show_first_comparison
from grpo.planning.plan_tables import new_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Share of pairs with a longer chosen answer, from which the check warns that length alone predicts the preference.
_LENGTH_SHARE = 0.75


def show_preferences(
    settings: config.PreferenceJobConfig, tokenizer: PreTrainedTokenizerBase, console: Console, *, full: bool
) -> tuple[str, ...]:
    """Print the preferences as the policy reads them; return warnings about them.

    Raises:
        ValueError: the data cannot be used (`grpo.data.preferences`).
    """
    scores = isinstance(settings, config.RewardConfig)
    data = load_preferences(
        settings.data,
        tokenizer,
        max_tokens=settings.schedule.max_tokens,
        microbatch_tokens=settings.learner.microbatch_tokens,
        job=settings.job,
        reads_end=scores,
    )
    console.print(_data_table(settings, data))
    show_first_comparison(data.training[0], tokenizer, console, full=full)
    console.print(_loss_table(settings.schedule))
    learnt = "the reward model may only measure" if scores else "the policy may learn"
    return tuple(_warnings(data.training, learnt))


def _data_table(settings: config.PreferenceJobConfig, data: PreferenceSet) -> Table:
    table, comparisons = new_table("data"), data.training
    pairs = sum(len(each.pairs) for each in comparisons)
    table.add_row("training", f"{len(comparisons):,} rows, {pairs:,} pairs; {data.dropped:,} too long and left out")
    if data.left_out:
        table.add_row("", f"left out as well (data.on_bad_row=drop): {lines_of(data.left_out)}")
    if data.held_out:
        table.add_row("held-out", f"{len(data.held_out):,} rows (data.validation)")
    table.add_row("prompt, tokens", _spread([each.answers[0].prompt_length for each in comparisons]))
    best = [each.answers[0].trained_tokens for each in comparisons]
    worse = [len(answer.old_logprobs) for each in comparisons for answer in each.answers[1:]]
    table.add_row("best answer, tokens", _spread(best))
    table.add_row("worse answers, tokens", _spread(worse))
    table.add_row("a comparison, tokens", _spread([each.computed_tokens for each in comparisons]))
    table.add_row(
        "passes over the rows", f"{settings.schedule.steps * settings.schedule.batch_size / len(comparisons):.2g}"
    )
    return table


def _spread(lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    at_99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"median {statistics.median(ordered):g}, 99th percentile {at_99:,}, longest {ordered[-1]:,}"


def _loss_table(schedule: PreferenceScheduleConfig) -> Table:
    table = new_table("objective")
    if isinstance(schedule, config.RewardScheduleConfig):
        rankings = "Plackett-Luce: the likelihood of a whole ranking"
        pairs = "Bradley-Terry: -log sigmoid of the difference of the two scores"
        table.add_row("loss", rankings if schedule.loss == "plackett_luce" else pairs)
        if schedule.center:
            table.add_row("centring", f"{schedule.center:g} x the squared sum of the two scores of a pair")
        table.add_row("model", "the starting policy with a score head in place of its output head")
        return table
    assert isinstance(schedule, config.DpoScheduleConfig)
    dpo = schedule
    if dpo.loss == "ipo":
        table.add_row("loss", f"IPO: squared distance of the log-ratios to {1 / (2 * dpo.beta):g} nats per token")
    else:
        smoothed = f", label smoothing {dpo.label_smoothing:g} (conservative DPO)" if dpo.label_smoothing else ""
        table.add_row("loss", f"DPO: -log sigmoid of the margin of the implicit rewards, beta {dpo.beta:g}{smoothed}")
    term = f"{dpo.sft_weight:g} x the chosen answer's negative log-likelihood per token" if dpo.sft_weight else "none"
    table.add_row("SFT term", term)
    table.add_row("reference", "the starting policy, which scores all answers before the first step; no second model")
    return table


def _warnings(comparisons: Sequence[AnswerComparison], learnt: str) -> list[str]:
    lengths = [[len(answer.token_ids) for answer in each.answers] for each in comparisons]
    pairs = [
        (row[better], row[worse])
        for each, row in zip(comparisons, lengths, strict=True)
        for better, worse in each.pairs
    ]
    longer = sum(better > worse for better, worse in pairs) / len(pairs)
    shorter = sum(better < worse for better, worse in pairs) / len(pairs)
    share, word = max((longer, "longer"), (shorter, "shorter"))
    if share < _LENGTH_SHARE:
        return []
    return [
        f"in {share:.0%} of the pairs the better answer is the {word} one, so length alone predicts the preference; "
        f"{learnt} the length (docs/preferences.md#length)"
    ]
