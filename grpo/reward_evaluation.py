"""`grpo reward CONFIG --evaluate`: how often a reward model agrees with preference rows, also by subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo.algorithm.reward_models.statistics import pair_statistics
from grpo.cluster.reward_models.actor import batches
from grpo.config import RewardConfig
from grpo.data.chat import render, uses_chat_template
from grpo.data.preferences import RankedAnswers, ranked_answers
from grpo.data.prompts import tokenize
from grpo.policy.scores import check_scorer, load_scorer, score_tokens
from grpo.policy.stored import load_tokenizer, local_or_hub
from grpo.terminal import LiteralTable, Terminal

ALL = "all rows"


@dataclass(frozen=True, slots=True)
class PreferenceAccuracy:
    """The agreement of a reward model with the rows of a subset.

    Attributes:
        rows: number of rows.
        statistics: values of `grpo.algorithm.reward_models.statistics.pair_statistics`.
    """

    rows: int
    statistics: dict[str, float]


def evaluate_reward_model(settings: RewardConfig, by: str | None = None) -> tuple[dict[str, PreferenceAccuracy], int]:
    """Score all rows of `data` with the reward model `policy.path`, on the CPU of this process.

    Args:
        settings: configuration, whose `policy.path` is a reward model.
        by: column whose values divide the rows into subsets; None for no subsets.

    Returns:
        The agreement of each subset, the largest subset first, after that of all rows; and the number of rows that are
        longer than `reward.max_tokens` and left out.

    Raises:
        ValueError: there is no reward model, or the rows cannot be used.
    """
    path, longest = local_or_hub(settings.policy), settings.reward.max_tokens
    tokenizer = load_tokenizer(path)
    check_scorer(path, "policy.path", tokenizer, longest)
    ranked, _ = ranked_answers(settings.data)
    subsets = [_subset(each, by) for each in ranked]
    texts = render(settings.data, tokenizer, [each.messages for each in ranked])
    prompts = tokenize(tokenizer, texts, special=not uses_chat_template(settings.data, tokenizer))
    answers = iter(tokenize(tokenizer, [text for each in ranked for text in each.answers], special=False))
    rows = [[[*next(answers), tokenizer.eos_token_id] for _ in each.answers] for each in ranked]
    kept = [at for at, row in enumerate(rows) if all(len(prompts[at]) + len(answer) <= longest for answer in row)]
    if not kept:
        raise ValueError(f"none of the {len(rows)} rows fits reward.max_tokens={longest}; raise it")
    model = load_scorer(path, settings.policy.dtype, "sdpa").eval()
    sequences = [[*prompts[at], *answer] for at in kept for answer in rows[at]]
    scores = [0.0] * len(sequences)
    for places in batches([len(ids) for ids in sequences], settings.learner.microbatch_tokens):
        for place, score in zip(places, score_tokens(model, [sequences[at] for at in places]), strict=True):
            scores[place] = score
    remaining = iter(scores)
    by_row = {at: [next(remaining) for _ in rows[at]] for at in kept}
    parts: dict[str, list[int]] = {ALL: kept}
    for at in kept if by else ():
        parts.setdefault(subsets[at], []).append(at)
    return {
        name: PreferenceAccuracy(
            len(part),
            pair_statistics([by_row[at] for at in part], [[len(answer) for answer in rows[at]] for at in part]),
        )
        for name, part in sorted(parts.items(), key=lambda item: -len(item[1]))
    }, len(rows) - len(kept)


def _subset(row: RankedAnswers, by: str | None) -> str:
    if by is None:
        return ALL
    if by not in row.columns:
        raise ValueError(f"--by {by}: the rows have no such column; they have {', '.join(sorted(row.columns))}")
    return str(row.columns[by])


def show_accuracies(accuracies: dict[str, PreferenceAccuracy], left_out: int, console: Terminal) -> None:
    """Print a table with a line for each subset."""
    table = LiteralTable("rows", "count", "accuracy", "95 % interval", "margin", "ECE", "same length", "length alone")
    for name, part in accuracies.items():
        values = part.statistics
        table.add_row(
            name,
            f"{part.rows:,}",
            f"{values['accuracies']:.3f}",
            f"{values['accuracies_low']:.3f} to {values['accuracies_high']:.3f}",
            *_figures(values, ("margins", "calibration_error", "matched_length_accuracies", "length_only_accuracies")),
        )
    console.print(table)
    if left_out:
        console.print(f"{left_out:,} rows are longer than reward.max_tokens and left out")


def _figures(values: dict[str, float], names: Sequence[str]) -> list[str]:
    return [f"{values[name]:.3f}" if name in values else "" for name in names]
