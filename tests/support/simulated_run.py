"""The folder of a run whose seconds the simulator made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from grpo.planning.simulation.lengths import modelled
from grpo.planning.simulation.loop import Deployment, RolloutSchedule, Speeds, simulate
from grpo.report.metrics_log import MetricsLine
from grpo.report.rollout_store import write_step
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards import verdict

SPEEDS = Speeds(0.02, 0.003, 0.0, 1.5, 0.0004, 0.25)


def config(folder: Path, **sections: object) -> Path:
    path = folder / "config.yaml"
    plain = {
        "run": {"folder": str(folder)},
        "policy": {"path": "nowhere"},
        "data": {"path": "rows.jsonl"},
        "verifiers": [{"name": "answer", "use": "numeric"}],
        "rollout": {"prompts_per_step": 6, "group_size": 4, "max_prompt_tokens": 16, "max_completion_tokens": 100},
        "learner": {"ranks": 2},
        "generator": {"replicas": 2, "max_sequences": 8},
        "train": {"steps": 9},
    }
    path.write_text(yaml.safe_dump(plain | sections))
    return path


def group(lengths: list[int], version: int) -> Group:
    completions = [Completion((1,) * n, (-1.0,) * n, "x", "stop", (VersionSpan(0, n, version),)) for n in lengths]
    rollouts = tuple(Rollout(one, {"answer": verdict.correct()}, 1.0) for one in completions)
    return Group(Prompt("p", "?", (1,), "1", {}), rollouts)


def write_run(folder: Path, ahead: int = 0) -> Path:
    """A run of nine steps whose seconds are those of `SPEEDS`; its first step took as long as compiling does."""
    config(folder)
    lines = []
    for step in range(1, 10):
        lengths = modelled(f"lognormal:median={10 * step},sigma=0.7", 100).draw(np.random.default_rng(step), 6, 4)
        groups = [group(row, step - 1 - ahead) for row in lengths.tolist()]
        write_step(folder, step, groups, [[0.0] * 4] * 6)
        simulated = simulate(RolloutSchedule(6), Deployment(2, 8, 2), SPEEDS, lengths, 1)[0]
        metrics = {
            "time/generate_s": simulated.ready_s + 60 * (step == 1),
            "time/learn_s": simulated.learned_s - simulated.ready_s,
            "time/sync_s": 0.25,
            "time/step_s": simulated.ended_s,
            "throughput/tokens_per_s": lengths.sum() / simulated.ended_s,
        }
        lines.append(MetricsLine(step, float(step), metrics).to_json())
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder
