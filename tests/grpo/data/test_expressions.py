"""The code quickstart's task: the references are right, and what is held out is never seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config import SftConfig
from grpo.config.file import load
from grpo.data.arithmetic import is_held_out
from grpo.data.expressions import LONGEST, SHORTEST, demonstrations, questions

ROOT = Path(__file__).resolve().parents[3]


def worked_out(question: str, x: int) -> int:
    """What the steps of a question make of `x`, read from its words."""
    for step in question.split("; "):
        name, digit = step.split()
        k = int(digit)
        x = {"add": x + k, "take": x - k, "times": x * k, "mod": x % k, "max": max(x, k), "min": min(x, k)}[name]
    return x


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_references_are_right(seed: int, held_out: bool) -> None:
    rows = list(questions(20, seed=seed, held_out=held_out))
    assert len(rows) == 20
    for row in rows:
        assert SHORTEST <= len(row["prompt"].split("; ")) <= LONGEST
        calls = json.loads(row["answer"])
        assert len({x for (x,) in calls["inputs"]}) == len(calls["inputs"]) >= 5
        assert calls["outputs"] == [[worked_out(row["prompt"], x)] for (x,) in calls["inputs"]]
        assert len({result for (result,) in calls["outputs"]}) >= 3, "a function of few results could be guessed"


def test_what_is_held_out_is_neither_trained_on_nor_demonstrated() -> None:
    held_out = {row["prompt"] for row in questions(400, held_out=True)}
    seen = {row["prompt"] for row in questions(4000)} | {row["prompt"] for row in demonstrations(4000)}
    assert not held_out & seen
    assert all(is_held_out(question) for question in held_out)
    assert len(held_out) > 350


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_careful_demonstrations_do_every_step_and_sloppy_ones_a_single_one(share: float) -> None:
    careful = 0
    rows = list(demonstrations(1000, careful_share=share))
    for row in rows:
        found = re.fullmatch(r"```python\ndef f\(x\):\n((?: x=.+\n)*) return (.+)\n```", row["response"])
        assert found is not None, row
        texts = [
            {"add": f"x+{k}", "take": f"x-{k}", "times": f"x*{k}", "mod": f"x%{k}"}.get(name, f"{name}(x,{k})")
            for name, k in (step.split() for step in row["prompt"].split("; "))
        ]
        if found[1]:
            careful += 1
            assert found[1] == "".join(f" x={text}\n" for text in texts) and found[2] == "x"
        else:
            assert found[2] in texts
    assert careful / len(rows) == pytest.approx(share, abs=0.05)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    assert list(questions(50, seed=3)) == list(questions(50, seed=3))
    assert list(demonstrations(50, seed=3)) == list(demonstrations(50, seed=3))
    assert list(questions(50, seed=3)) != list(questions(50, seed=4))
    assert list(questions(10)) == list(questions(50))[:10]


def test_the_policy_of_the_cold_start_can_read_and_write_all_of_it() -> None:
    settings = load(SftConfig, ROOT / "configs" / "code_quickstart_sft.yaml")
    new = settings.policy.new
    assert new is not None
    tags = "|".join(map(re.escape, new.tags))
    for row in demonstrations(500):
        assert set(re.sub(tags, "", row["prompt"] + row["response"])) <= set(new.alphabet)
