"""The start of a rank: what DeepSpeed must not do when the ranks connect."""

from __future__ import annotations

import subprocess
import sys

# A rank's first process group, in a process of its own: DeepSpeed keeps what it has probed or built.
CONNECTS = """
import os, subprocess, sys
import torch
from grpo.learner.device import prepare_device

def refuse(*arguments, **options):
    raise AssertionError(f"a process was started: {arguments}")

torch.backends.cuda.enable_cudnn_sdp(True)
prepare_device("cpu", 1)
import deepspeed
from grpo.learner.rendezvous import meet
meet("gloo", 0, 1, "127.0.0.1", 0)
subprocess.Popen = subprocess.run = refuse
deepspeed.init_distributed("gloo", dist_init_required=False)
backend = deepspeed.comm.comm.cdb
assert backend.shm_comm_op is None, backend.shm_comm_op
assert torch.get_num_threads() == 1
print("connected")
"""


def test_a_rank_compiles_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CONNECTS], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["connected"], done.stderr
