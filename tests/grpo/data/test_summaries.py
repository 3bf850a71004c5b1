"""The task with a made-up rater: his rule, his noise, and what is held out."""

from __future__ import annotations

import math

import pytest

from grpo.data.summaries import ceiling, demonstrations, is_held_out, preferences, prompts, quality, rated


def test_the_rule_by_hand() -> None:
    assert quality("28179?", "987") == quality("28179?", "798") == 24
    assert quality("28179?", "217") == 10
    # A number that is not in the list; a repeated one; a number too few; one too many; and the prompt's own mark.
    assert quality("28179?", "986") == 17 - 8
    assert quality("28179?", "998") == 17 - 8
    assert quality("28179?", "98") == 17 - 8
    assert quality("28179?", "9872") == 26 - 8
    assert quality("28179?", "98?") == 17 - 8


def test_the_rater_errs_as_often_as_his_temperature_says() -> None:
    rows = list(preferences(3000, temperature=3.0))
    gaps = [quality(row["prompt"], row["chosen"]) - quality(row["prompt"], row["rejected"]) for row in rows]
    expected = [1 / (1 + math.exp(-abs(gap) / 3)) for gap in gaps]
    assert ceiling(iter(rows)) == pytest.approx(sum(expected) / len(rows), abs=0.02)
    assert ceiling(preferences(500, temperature=1e-3)) > 0.97
    ranking = next(preferences(1, answers=4, temperature=1e-3))["ranking"]
    assert len(set(ranking)) == 4


def test_the_win_rate_is_a_half_for_the_cold_start_and_high_for_the_best() -> None:
    rows = {row["prompt"]: row["answer"] for row in prompts(300)}
    best = [rated(answer, answer, {"prompt": prompt}) for prompt, answer in rows.items()]
    assert all(each.status.value == "correct" and each.score > 0.8 for each in best)  # type: ignore[operator]
    shown = [row for row in demonstrations(400) if not is_held_out(row["prompt"])]
    scores = []
    for row in shown:
        answer = "".join(sorted(row["prompt"][:-1], reverse=True)[:3])
        scores.append(rated(row["response"], answer, {"prompt": row["prompt"]}).score)
    assert sum(scores) / len(scores) == pytest.approx(0.5, abs=0.04)  # type: ignore[arg-type]


def test_held_out_prompts_are_never_shown() -> None:
    held_out = {row["prompt"] for row in prompts(200, held_out=True)}
    seen = {row["prompt"] for part in (prompts(500), demonstrations(500), preferences(500)) for row in part}
    assert all(map(is_held_out, held_out)) and not held_out & seen
