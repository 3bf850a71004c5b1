"""Seconds from the death of a generator to the next group that it finishes.

    python tests/bench/generator_recovery.py runs/quickstart_sft/policy

One replica with the quickstart's shape and policy is killed in the middle of its work, several times.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import ray

from grpo import config
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.generator.setup import GeneratorSetup
from grpo.types import Request, SamplingParams

ROUNDS = 3


def main(path: str) -> None:
    setup = GeneratorSetup(path, "float32", config.GeneratorConfig(), 104, 1.0, "cpu", 0)
    seconds: list[tuple[float, float]] = []
    with Cluster(config.ClusterConfig(device="cpu"), Plan(0, 1, 1, 1, 1)) as cluster:
        generators = cluster.start_generators([setup], 600.0, 600.0)()
        weights = [ray.put(np.frombuffer((Path(path) / "model.safetensors").read_bytes(), dtype=np.uint8))]
        started_at = 0.0

        def push(replica: int) -> None:
            nonlocal started_at
            started_at = time.monotonic()
            generators.only(replica).load_weights(weights, 1)

        generators.on_restart(push)
        generators.load_weights(weights, 1)
        for number in range(ROUNDS):
            stream = generators.stream(SamplingParams(8, 80, 1.0))
            stream.submit([Request(i, (4, 5, 6), 1000 * number + i) for i in range(600)])
            stream.finished()
            processes = generators._replicas[0]._processes
            assert processes is not None
            killed_at = time.monotonic()
            os.kill(processes.created[0][0], signal.SIGKILL)
            while not stream.finished() or started_at < killed_at:
                pass
            seconds.append((started_at - killed_at, time.monotonic() - started_at))
            while stream.unfinished:
                stream.finished()
    for name, values in zip(("start-up", "weights, replay and first group"), zip(*seconds, strict=True), strict=True):
        print(f"{name}: median {statistics.median(values):.1f} s of {', '.join(f'{one:.1f}' for one in values)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
