"""Policies with random weights and batches of random tokens for the GPU check."""

from __future__ import annotations

import dataclasses
import math
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from grpo import config
from grpo.algorithm.minibatches import TrainBatch, batch
from grpo.algorithm.packing import TrainingSequence
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import Device
from grpo.learner.setup import LearnerSetup

# Qwen3's published shapes, and two small ones: hidden size, layers, heads, key-value heads, head size, intermediate
# size, vocabulary. `check` has the head size of the published shapes, so that the same kernels run.
SHAPES = {
    "tiny": (64, 2, 4, 2, 16, 96, 128),
    "check": (512, 4, 8, 2, 128, 1024, 2048),
    "0.6b": (1024, 28, 16, 8, 128, 3072, 151_936),
    "1.7b": (2048, 28, 16, 8, 128, 6144, 151_936),
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sizes of the batch of an optimizer step, in tokens where nothing else is said.

    Attributes:
        groups: number of prompts.
        group_size: number of completions of a prompt.
        prompt: length of a prompt.
        completion: mean length of a completion; the lengths are log-normal with a tail of about five times the mean. If
            `fixed` is set, every completion has this length.
        longest: longest sequence.
        microbatch: size of a microbatch.
        fixed: whether all completions are equally long.
    """

    groups: int
    group_size: int
    prompt: int
    completion: int
    longest: int
    microbatch: int
    fixed: bool = False


RL = Lengths(groups=6, group_size=8, prompt=200, completion=1200, longest=6144, microbatch=16_384)
ONE_OF_16K = Lengths(
    groups=2, group_size=1, prompt=200, completion=16_184, longest=16_384, microbatch=16_384, fixed=True
)
TINY = Lengths(groups=4, group_size=2, prompt=6, completion=12, longest=48, microbatch=64)


def make_policy(name: str, folder: Path, device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Qwen3Config:
    """Write a policy with random weights, and a tokenizer, in Hugging Face format.

    Args:
        name: shape, a key of `SHAPES`.
        folder: new folder of the policy.
        device: device on which the weights are drawn.
        dtype: number format of the stored weights.
        scale: factor of the matrices. Fresh weights are so small that the logits are nearly equal.
    """
    hidden, layers, heads, key_value_heads, size, intermediate, vocabulary = SHAPES[name]
    shape = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=size,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype=str(dtype).removeprefix("torch."),
    )
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(shape).to(dtype)
    if scale != 1.0:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "<unknown>": 1}, unk_token="<unknown>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return shape


def sequences(lengths: Lengths, vocabulary: int, seed: int) -> list[TrainingSequence]:
    """Return groups of completions with one prompt for each group; half of the advantages are negative."""
    drawn = random.Random(seed)
    spread = 0.8
    made = []
    for _ in range(lengths.groups):
        prompt = tuple(drawn.choices(range(vocabulary), k=lengths.prompt))
        for _ in range(lengths.group_size):
            length = lengths.completion
            if not lengths.fixed:
                length = int(drawn.lognormvariate(math.log(length) - spread**2 / 2, spread))
            length = max(2, min(length, lengths.longest - lengths.prompt))
            sampled = tuple(drawn.choices(range(vocabulary), k=length))
            # Near the log-probabilities of a policy that knows nothing, so that some ratios are clipped.
            old = tuple(drawn.gauss(-math.log(vocabulary), 0.3) for _ in range(length))
            made.append(TrainingSequence((*prompt, *sampled), len(prompt), old, drawn.choice((-1.0, 1.0))))
    return made


def step_batch(lengths: Lengths, vocabulary: int, seed: int) -> TrainBatch:
    """Return the batch of an optimizer step for one rank."""
    made = sequences(lengths, vocabulary, seed)
    return batch(made, denominator=trained_tokens(made), ranks=1, microbatch_tokens=lengths.microbatch)


def trained_tokens(made: Sequence[TrainingSequence]) -> float:
    """Return the denominator of a loss that is a mean over tokens."""
    return float(sum(sequence.trained_tokens for sequence in made))


def learner_setup(
    folder: Path,
    device: Device,
    dtype: config.Dtype,
    learner: dict[str, object],
    algorithm: AlgorithmConfig | None = None,
) -> LearnerSetup:
    """Return the setup of a learner with one rank; `learner` has the settings that differ from the defaults."""
    return LearnerSetup(
        policy_path=str(folder),
        reference_path=str(folder),
        dtype=dtype,
        algorithm=algorithm or AlgorithmConfig(),
        learner=config.LearnerConfig.model_validate(learner),
        temperature=1.0,
        total_steps=100,
        seed=0,
        rank=0,
        world_size=1,
        device=device,
        collective_deadline_s=120.0,
        skipped_folder=str(folder.parent / "skipped"),
    )


def on_device(setup: LearnerSetup, device: Device) -> LearnerSetup:
    """Return the same setup on another device."""
    return dataclasses.replace(setup, device=device)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
