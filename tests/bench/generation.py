"""Seconds that the quickstart's generators need for the completions of a step, and what they use when idle.

    python tests/bench/generation.py runs/quickstart_sft/policy

Two replicas, 32 prompts, 8 completions each. The policy is that of `grpo sft configs/quickstart_sft.yaml`.
"""

from __future__ import annotations

import statistics
import sys
import time

import psutil
from transformers import AutoTokenizer

from grpo import config
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.data.arithmetic import questions
from grpo.generator.setup import GeneratorSetup
from grpo.types import Prompt, SamplingParams

ROUNDS = 12
IDLE_S = 5.0


def main(path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = list(questions(count=32))
    prompts = [
        Prompt(str(i), row["prompt"], tuple(tokenizer(row["prompt"])["input_ids"]), None, {})
        for i, row in enumerate(rows)
    ]
    sampling = SamplingParams(8, 80, 1.0)
    setups = [
        GeneratorSetup(path, "float32", config.GeneratorConfig(replicas=2), 104, 1.0, "cpu", replica)
        for replica in range(2)
    ]
    with Cluster(config.ClusterConfig(device="cpu"), Plan(0, 1, 2, 1, 1)) as cluster:
        generators = cluster.start_generators(setups, 600.0, 600.0)()
        seconds, tokens = [], 0
        for number in range(ROUNDS + 1):
            began = time.monotonic()
            groups = list(generators.generate(prompts, sampling, range(number * 1000, number * 1000 + 32)))
            seconds.append(time.monotonic() - began)
            tokens = sum(len(one.token_ids) for _, completions in groups for one in completions)
        actors = [one for one in psutil.Process().children(recursive=True) if "Generator" in " ".join(one.cmdline())]
        used = sum(sum(one.cpu_times()[:2]) for one in actors)
        time.sleep(IDLE_S)
        idle = (sum(sum(one.cpu_times()[:2]) for one in actors) - used) / IDLE_S
    print(
        f"median {statistics.median(seconds[1:]):.3f} s, least {min(seconds[1:]):.3f} s, {tokens} tokens in the last; "
        f"{len(actors)} idle actors use {100 * idle:.1f} % of a core"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
