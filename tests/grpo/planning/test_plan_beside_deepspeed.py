"""The memory plan beside what DeepSpeed and the learner really hold in a step, counted tensor by tensor on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config import LearnerConfig, PolicyConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.planning.memory import BUCKET_ELEMENTS, CUDA_BYTES, learner_memory
from grpo.planning.policy_shape import shape_of

ROOT = Path(__file__).parents[3]
# One process for each learner. Two steps of two microbatches each: Adam's states exist from the second step on.
PROGRAM = """
import gc, json, sys
from pathlib import Path
import gpu_policies, torch
from grpo.learner.rank import LearnerRank
from grpo.planning.layer_bytes import LiveBytes

folder, dtype, learner = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
gpu_policies.SHAPES["here"] = (256, 6, 4, 4, 64, 768, 4096)
gpu_policies.make_policy("here", folder, torch.device("cpu"), getattr(torch, dtype))
lengths = gpu_policies.Lengths(4, 1, prompt=32, completion=993, longest=2048, microbatch=2048, fixed=True)
with LiveBytes(device="cpu") as live:
    rank = LearnerRank(
        gpu_policies.learner_setup(folder, "cpu", dtype, learner), "127.0.0.1", gpu_policies.free_port()
    )
    for step in range(2):
        gc.collect()
        live.peak = live.now
        (part,) = gpu_policies.step_batch(lengths, 4096, seed=step).ranks
        assert len(part.microbatches) == 2
        rank.step(part)
print(live.peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "learner"),
    [
        ("bfloat16", {"zero_stage": 2}),
        ("bfloat16", {"zero_stage": 2, "gradient_checkpointing": 0.5}),
        ("bfloat16", {"zero_stage": 3, "gradient_checkpointing": 1}),
        ("float32", {"zero_stage": 2, "gradient_checkpointing": 1}),
    ],
)
def test_a_real_step_holds_what_the_plan_says(dtype: str, learner: dict[str, Any], tmp_path: Path) -> None:
    settings = {"microbatch_tokens": 2048, "kernels": "eager", **learner}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "policy"), dtype, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'gpu'}", "DS_ACCELERATOR": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    policy = PolicyConfig.model_validate({"path": str(tmp_path / "policy"), "dtype": dtype})
    config = LearnerConfig.model_validate(settings)
    shape = shape_of(policy, config)
    assert shape is not None
    # As for a GPU, because DeepSpeed makes its whole bucket on a CPU too. The rest is compared without it.
    planned = learner_memory(shape, policy, config, AlgorithmConfig()).needed - CUDA_BYTES
    bucket = BUCKET_ELEMENTS * getattr(torch, dtype).itemsize
    assert planned - bucket == pytest.approx(int(done.stdout.split()[-1]) - bucket, rel=0.15)
