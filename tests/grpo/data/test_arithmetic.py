"""The quickstart's task: its answers are right, and what is held out is never seen."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config import NewPolicyConfig
from grpo.data.arithmetic import LONGEST, SHORTEST, demonstrations, is_held_out, questions


def worked_out(question: str) -> int:
    """The value of a question, from its signed terms."""
    assert question.endswith("=?")
    terms = re.findall(r"(?:^|[+-])\d", question)
    assert "".join(terms) == question[:-2]
    return sum(int(term) for term in terms)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_answers_are_right(seed: int, held_out: bool) -> None:
    rows = list(questions(30, seed=seed, held_out=held_out))
    assert len(rows) == 30
    for row in rows:
        assert int(row["answer"]) == worked_out(row["prompt"])
        assert SHORTEST <= len(re.findall(r"\d", row["prompt"])) <= LONGEST


def test_what_is_held_out_is_neither_trained_on_nor_demonstrated() -> None:
    held_out = {row["prompt"] for row in questions(400, held_out=True)}
    trained = {row["prompt"] for row in questions(4000)}
    shown = {row["prompt"] for row in demonstrations(4000)}
    assert not held_out & (trained | shown)
    assert all(is_held_out(question) for question in held_out)
    # The task is large: what is held out is no small corner of it.
    assert len(held_out) > 350


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_demonstrations_is_careful(share: float) -> None:
    rows = list(demonstrations(2000, careful_share=share))
    careful = [row for row in rows if row["response"].startswith("<think>")]
    assert len(careful) / len(rows) == pytest.approx(share, abs=0.04)


def test_careful_demonstrations_think_rightly_step_by_step() -> None:
    for row in demonstrations(300, careful_share=1.0):
        found = re.fullmatch(r"<think>(.+)</think><answer>(-?\d+)</answer>", row["response"])
        assert found is not None
        assert int(found[2]) == worked_out(row["prompt"])
        terms = re.findall(r"(?:^|[+-])\d", row["prompt"])
        total = int(terms[0])
        steps = found[1].split("; ")
        assert len(steps) == len(terms) - 1
        for step, term in zip(steps, terms[1:], strict=True):
            assert step == f"{total}{term}={total + int(term)}"
            total += int(term)


def test_sloppy_demonstrations_are_near_but_mostly_wrong() -> None:
    offsets = []
    for row in demonstrations(1000, careful_share=0.0):
        found = re.fullmatch(r"<answer>(-?\d+)</answer>", row["response"])
        assert found is not None
        offsets.append(int(found[1]) - worked_out(row["prompt"]))
    assert set(offsets) == set(range(-9, 10))
    assert 0 < offsets.count(0) < 100


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    assert list(questions(50, seed=3)) == list(questions(50, seed=3))
    assert list(demonstrations(50, seed=3)) == list(demonstrations(50, seed=3))
    assert list(questions(50, seed=3)) != list(questions(50, seed=4))
    assert list(questions(10)) == list(questions(50))[:10]


def test_the_default_policy_can_read_and_write_all_of_it() -> None:
    new = NewPolicyConfig()
    tags = "|".join(map(re.escape, new.tags))
    for row in demonstrations(500):
        assert set(re.sub(tags, "", row["prompt"] + row["response"])) <= set(new.alphabet)


def test_a_tenth_of_the_questions_is_held_out() -> None:
    held_out = sum(is_held_out(f"{first}+{second}=?") for first in range(200) for second in range(200))
    assert held_out / 200**2 == pytest.approx(0.1, abs=0.003)
