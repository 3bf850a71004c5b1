"""Short ways to the set-ups that the engines are started with."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import psutil

from grpo import config
from grpo.algorithm.minibatches import TrainBatch, batch
from grpo.algorithm.packing import TrainingSequence
from grpo.config.algorithm import AlgorithmConfig
from grpo.generator.setup import GeneratorSetup
from grpo.learner.setup import LearnerSetup

if TYPE_CHECKING:
    from grpo.cluster.learner_group import LearnerGroup

CPU = config.ClusterConfig(device="cpu", start_deadline_s=240, step_deadline_s=120)


# What a step measures of the machine, and so never measures alike twice.
SPEED = ("compute_s", "tokens_per_s", "tflops_per_s", "mfu", "peak_memory_gib")


def without_speed(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a step says of the policy."""
    return {name: value for name, value in metrics.items() if name not in SPEED}


def learner_setups(
    path: str,
    *,
    ranks: int = 1,
    sequence_parallel: int = 1,
    zero_stage: int = 2,
    dtype: config.Dtype = "float32",
    learning_rate: float = 1e-2,
    temperature: float = 1.0,
    algorithm: AlgorithmConfig | None = None,
    kl_coefficient: float = 0.0,
    gradient_checkpointing: float = 0.0,
    skipped_folder: str = "skipped",
    lora: config.LoraConfig | None = None,
) -> list[LearnerSetup]:
    settings = config.LearnerConfig.model_validate(
        {
            "ranks": ranks,
            "sequence_parallel": sequence_parallel,
            "zero_stage": zero_stage,
            "learning_rate": learning_rate,
            "microbatch_tokens": 256,
            "gradient_checkpointing": gradient_checkpointing,
            "max_skipped_steps": 2,
            "lora": lora,
        }
    )
    return [
        LearnerSetup(
            policy_path=path,
            reference_path=path,
            dtype=dtype,
            algorithm=algorithm
            or AlgorithmConfig(kl="k3" if kl_coefficient else "none", kl_coefficient=kl_coefficient),
            learner=settings,
            temperature=temperature,
            total_steps=10,
            seed=0,
            rank=rank,
            world_size=ranks,
            device="cpu",
            collective_deadline_s=240.0,
            skipped_folder=skipped_folder,
        )
        for rank in range(ranks)
    ]


def generator_setup(
    path: str, *, engine: str = "in_actor", temperature: float = 1.0, replica: int = 0
) -> GeneratorSetup:
    settings = config.GeneratorConfig.model_validate({"engine": engine, "max_sequences": 64})
    return GeneratorSetup(
        policy_path=path,
        dtype="float32",
        generator=settings,
        max_sequence_tokens=128,
        temperature=temperature,
        device="cpu",
        replica=replica,
    )


def random_sequences(count: int, seed: int = 0, group_size: int = 1) -> list[TrainingSequence]:
    """Prompts and completions of random tokens and lengths, with log-probabilities and advantages to match.

    Args:
        count: sequences.
        seed: of all that is random.
        group_size: neighbours that share a prompt.
    """
    generator = random.Random(seed)
    sequences: list[TrainingSequence] = []
    for number in range(count):
        prompt, completion = generator.randint(2, 9), generator.randint(1, 40)
        tokens = tuple(generator.randrange(3, 20) for _ in range(prompt + completion))
        if number % group_size:
            before = sequences[-1]
            prompt, tokens = before.prompt_length, (*before.token_ids[: before.prompt_length], *tokens[prompt:])
        old = tuple(generator.uniform(-3.3, -2.9) for _ in range(completion))
        sequences.append(TrainingSequence(tokens, prompt, old, generator.choice((-1.2, -0.3, 0.4, 1.5))))
    return sequences


def random_batch(ranks: int, count: int = 24, seed: int = 0) -> TrainBatch:
    sequences = random_sequences(count, seed)
    trained = sum(sequence.trained_tokens for sequence in sequences)
    return batch(sequences, denominator=float(trained), ranks=ranks, microbatch_tokens=256)


@contextlib.contextmanager
def started_learners(setups: Mapping[str, list[LearnerSetup]]) -> Iterator[dict[str, LearnerGroup]]:
    """Learners side by side, each of as many ranks as it has setups; Ray must be running."""
    # Not above: ranks without Ray read this file too.
    from grpo.cluster.claim import Plan
    from grpo.cluster.cluster import Cluster

    with contextlib.ExitStack() as opened:
        joining = {}
        for name, ranks in setups.items():
            cluster = opened.enter_context(Cluster(CPU, Plan(learner_ranks=len(ranks), learner_threads=1)))
            joining[name] = cluster.start_learner(ranks)
        yield {name: join() for name, join in joining.items()}


def listening_sockets() -> list[tuple[str, str]]:
    """(process, address) of every TCP socket that this process and its children listen on."""
    return [
        (process.name(), connection.laddr.ip)
        for process in (psutil.Process(), *psutil.Process().children(recursive=True))
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
