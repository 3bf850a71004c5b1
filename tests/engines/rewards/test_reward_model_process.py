"""A reward model in a real Ray process: its scores, and what becomes of them when the process dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
import ray
import torch
from tiny_policy import make_tiny_policy

from grpo.cluster.reward_models.actor import ScorerSetup
from grpo.cluster.reward_models.group import RewardModelProcess
from grpo.policy.score_scale import ScoreScale
from grpo.policy.scores import load_scorer, score_tokens
from rewards.verdict import Status, Verdict

pytestmark = pytest.mark.slow

END, WAIT_S = 1, 60
PROMPT, COMPLETIONS = (3, 4, 5), [(6, 7, END), (8, END), (9, 10, 11, 12)]


def verdicts(futures: Sequence[Future[Verdict]]) -> list[Verdict]:
    return [future.result(WAIT_S) for future in futures]


def test_scores_survive_the_death_of_the_process_and_failures_are_no_scores(ray_running: None, tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    model = load_scorer(str(policy), "float32", "sdpa")
    torch.manual_seed(0)
    model.score.weight.data.normal_()
    model.save_pretrained(tmp_path / "model")
    # The last completion was cut off. It gets the end token, with which each answer ended in training.
    whole = [[*PROMPT, *ids] for ids in (*COMPLETIONS[:2], (*COMPLETIONS[2], END))]
    expected = [(score - 2.0) / 4.0 for score in score_tokens(model, whole)]
    setup = ScorerSetup("m", str(tmp_path / "model"), "float32", "cpu", 1, 100)
    with RewardModelProcess(
        setup,
        scale=ScoreScale(2.0, 4.0, 9),
        end_token=END,
        end_tokens=frozenset({END}),
        deadline_s=30,
        start_s=60,
    ) as process:
        found = verdicts(process.submit(PROMPT, COMPLETIONS))
        assert [verdict.score for verdict in found] == pytest.approx(expected, abs=1e-5)
        assert {verdict.status for verdict in found} == {Status.SCORED}
        assert process.take_recent().statuses == {Status.SCORED: 3} and not process.take_recent().statuses
        os.kill(ray.get(process._actor.ready.remote()), signal.SIGKILL)
        again = verdicts(process.submit(PROMPT, COMPLETIONS))
        assert [verdict.score for verdict in again] == pytest.approx(expected, abs=1e-5) and process.restarts == 1
        # A model that cannot be loaded again: the completions have no score, at once from then on.
        (tmp_path / "model" / "config.json").unlink()
        os.kill(ray.get(process._actor.ready.remote()), signal.SIGKILL)
        assert {verdict.status for verdict in verdicts(process.submit(PROMPT, COMPLETIONS))} == {Status.ERROR}
        began = time.monotonic()
        (last,) = verdicts(process.submit(PROMPT, COMPLETIONS[:1]))
        assert last.score is None and "gave no score" in last.reason and time.monotonic() - began < 5
    with pytest.raises(RuntimeError, match="is closed"):
        process.submit(PROMPT, COMPLETIONS)
