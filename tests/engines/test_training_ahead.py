"""Training with two generators that go on sampling while the policy is trained and pushed to them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from grpo.config import TrainConfig
from grpo.report.progress import open_progress
from grpo.report.rollout_store import step_path
from grpo.report.timeline import StepLanes, step_lanes
from grpo.run import checkpoint
from grpo.train_loop import train
from rewards.pool.busy_clock import Busy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]

STEPS, LAG, PROMPTS, SAMPLES = 6, 2, 4, 4


def by_name(step: StepLanes) -> dict[str, Busy]:
    return {str(actor): busy for actor, busy in step.lanes.items()}


def test_completions_go_on_over_pushes_within_the_bound(tmp_path: Path, tied_policy: str, ray_running: None) -> None:
    folder = tmp_path / "run"
    settings = TrainConfig.model_validate(
        {
            "run": {"folder": str(folder)},
            "policy": {"path": tied_policy},
            "data": {"generator": "grpo.data.arithmetic:questions", "options": {"count": 60}},
            # A random policy's completions differ in nothing that matters, but in their lengths.
            "verifiers": [{"name": "length", "use": "length", "options": {"limit": 120, "buffer": 119}}],
            "rollout": {
                "prompts_per_step": PROMPTS,
                "group_size": SAMPLES,
                "max_prompt_tokens": 24,
                "max_completion_tokens": 160,
                "max_policy_lag": LAG,
            },
            "algorithm": {"preset": "cispo"},
            "learner": {"microbatch_tokens": 512},
            "generator": {"replicas": 2},
            "evaluation": {
                "every": 3,
                "data": {"generator": "grpo.data.arithmetic:questions", "options": {"count": 6, "held_out": True}},
            },
            "train": {"steps": STEPS, "checkpoint_every": 3},
            "report": {"trackers": []},
            "cluster": {"device": "cpu"},
        }
    )
    assert not settings.problems()
    train(settings, open_progress("GRPO", total_steps=STEPS))

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    asked, mixed = [], 0
    for step, line in enumerate(lines):
        rows = pyarrow.parquet.read_table(step_path(folder, step + 1)).to_pylist()
        assert len(rows) == PROMPTS * SAMPLES
        asked += [row["prompt_id"] for row in rows[::SAMPLES]]
        spans = [span for row in rows for span in row["spans"]]
        lags = [step - span["policy_version"] for span in spans]
        assert min(lags) >= 0 and max(lags) == line["rollout/policy_lag_max"] <= LAG
        mixed += sum(len(row["spans"]) > 1 for row in rows)
        assert line["sync/probe_mean_difference"] < 2e-4
        assert line["learner/gradient_norm"] > 0
        left = (min(step + 1 + LAG, STEPS) - step - 1) * PROMPTS
        assert line["rollout/groups_in_flight"] + line["rollout/groups_buffered"] == left
        assert 0 <= line["time/generator_idle_share"] <= 1 and line["time/learner_idle_s"] >= 0
    assert len(set(asked)) == len(asked) == STEPS * PROMPTS
    assert max(line["rollout/policy_lag_mean"] for line in lines) > 0
    assert mixed, "no push came while a completion was under way"
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [3, 6]

    # Each generator tells itself when it sampled, which it did while the learner learned.
    told = (folder / "timeline.jsonl").read_text().splitlines()
    overlap = {"generator 0": 0.0, "generator 1": 0.0}
    for step in range(1, STEPS + 1):
        found = step_lanes(told, step)
        assert found is not None
        lanes = by_name(found)
        assert {"driver", "learner rank 0"} <= set(lanes)
        for name in overlap.keys() & lanes.keys():
            overlap[name] += sum(
                max(0.0, min(to, until) - max(begin, since))
                for begin, to in lanes[name].get("generate", [])
                for since, until in lanes["learner rank 0"]["learn"]
            )
        assert found.end >= lines[step - 1]["time/step_s"] - 0.1
    assert min(overlap.values()) > 0
    pushed, saved = step_lanes(told, 1), step_lanes(told, 3)
    assert pushed is not None and all(
        "sync" in by_name(pushed)[name] for name in (*overlap, "learner rank 0", "driver")
    )
    assert saved is not None and all("checkpoint" in by_name(saved)[name] for name in ("learner rank 0", "driver"))
    assert "checkpoint" not in by_name(pushed)["driver"]

    middle = checkpoint.Checkpoint(3, folder / "checkpoints" / "step_000003").driver_state()["rollouts"]
    assert len(middle["buffer"]) + len(middle["asked"]) == LAG * PROMPTS
    last = checkpoint.latest(folder)
    assert last is not None and not last.driver_state()["rollouts"]["open"]["unfinished"]
