"""Packed against padded training, on one core: equal gradients first, then tokens per second.

    .venv/bin/python tests/bench/packing.py

The batch is groups of completions with long-tailed lengths behind one prompt each. `padded` is what most trainers do:
microbatches of so many sequences, padded to the longest in it, with the logits of every position; `padded
to the batch` pads to the longest of all. All use PyTorch's fused attention. Rows of a padded microbatch are chosen so
that it holds about as many positions as a packed one holds tokens. The three take turns within one process.
"""

from __future__ import annotations

import copy
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from grpo.algorithm.minibatches import TrainBatch, batch
from grpo.algorithm.packing import TrainingSequence
from grpo.policy.attention import PACKED
from grpo.policy.logprobs import PolicyLogprobs

SHAPE = Qwen3Config(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=True,
    max_position_embeddings=4096,
)


def sequences(groups: int, group_size: int, prompt_tokens: int, mean: int, longest: int) -> list[TrainingSequence]:
    """Groups whose completions have log-normal lengths (standard deviation of the logarithm 1)."""
    drawn = random.Random(0)
    made = []
    for _ in range(groups):
        prompt = tuple(drawn.randrange(SHAPE.vocab_size) for _ in range(prompt_tokens))
        for _ in range(group_size):
            length = min(longest, max(2, int(drawn.lognormvariate(math.log(mean) - 0.5, 1.0))))
            sampled = tuple(drawn.randrange(SHAPE.vocab_size) for _ in range(length))
            made.append(TrainingSequence((*prompt, *sampled), prompt_tokens, (0.0,) * length, drawn.uniform(-1, 1)))
    return made


def packed_step(policy: PolicyLogprobs, made: TrainBatch, trained: int) -> None:
    """Gradient of the mean of advantage times log-probability, as the learner computes it."""
    for microbatch in made.ranks[0].microbatches:
        (logprobs_T,) = policy(microbatch, 1.0)
        loss = -(logprobs_T * microbatch.advantages_T).sum() / trained
        loss.backward()


def padded_step(model: Qwen3ForCausalLM, microbatches: list[list[TrainingSequence]], trained: int, width: int) -> None:
    """The same gradient from rows padded to `width`, or to the longest of the microbatch where it is 0."""
    for rows in microbatches:
        longest = width or max(len(one.token_ids) for one in rows)
        input_ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BL, advantages_BL = torch.zeros(len(rows), longest), torch.zeros(len(rows), longest)
        for row, one in enumerate(rows):
            length = len(one.token_ids)
            input_ids_BL[row, :length] = torch.tensor(one.token_ids)
            mask_BL[row, :length] = 1
            advantages_BL[row, one.prompt_length : length] = one.advantage
        logits_BLV = model(input_ids=input_ids_BL, attention_mask=mask_BL, use_cache=False).logits[:, :-1]
        logprobs_BL = logits_BLV.log_softmax(-1).gather(2, input_ids_BL[:, 1:, None])[..., 0]
        loss = -(logprobs_BL * advantages_BL[:, 1:]).sum() / trained
        loss.backward()


def gradients(model: torch.nn.Module, step: Callable[[], None]) -> dict[str, Tensor]:
    model.zero_grad()
    step()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def main(
    groups: Annotated[int, typer.Option(help="prompts")] = 8,
    group_size: Annotated[int, typer.Option(help="completions of a prompt")] = 8,
    prompt_tokens: int = 64,
    mean: Annotated[int, typer.Option(help="mean completion length, tokens")] = 120,
    longest: int = 1000,
    microbatch_tokens: int = 4096,
    rounds: int = 5,
) -> None:
    """Check that gradients agree, then time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = Qwen3ForCausalLM(copy.deepcopy(SHAPE))
    plain.set_attn_implementation("sdpa")
    shared = Qwen3ForCausalLM(copy.deepcopy(SHAPE))
    shared.load_state_dict(plain.state_dict())
    shared.set_attn_implementation(PACKED)
    policy = PolicyLogprobs(shared)
    rows = sequences(groups, group_size, prompt_tokens, mean, longest)
    trained = sum(one.trained_tokens for one in rows)
    tokens = sum(len(one.token_ids) for one in rows)
    made = batch(rows, denominator=trained, ranks=1, microbatch_tokens=microbatch_tokens)
    width = max(len(one.token_ids) for one in rows)
    per_microbatch = max(1, microbatch_tokens // max(1, tokens // len(rows)))
    cut = [rows[start : start + per_microbatch] for start in range(0, len(rows), per_microbatch)]
    whole = [
        rows[start : start + max(1, microbatch_tokens // width)]
        for start in range(0, len(rows), max(1, microbatch_tokens // width))
    ]
    ways: dict[str, tuple[torch.nn.Module, Callable[[], None]]] = {
        "packed": (policy, lambda: packed_step(policy, made, trained)),
        "padded": (plain, lambda: padded_step(plain, cut, trained, 0)),
        "padded to the batch": (plain, lambda: padded_step(plain, whole, trained, width)),
    }
    found = {name: gradients(*way) for name, way in ways.items()}
    for name in ("padded", "padded to the batch"):
        for tensor, expected in found[name].items():
            torch.testing.assert_close(found["packed"][f"model.{tensor}"], expected, rtol=1e-3, atol=1e-6, msg=tensor)
    print(f"gradients agree; {len(rows)} sequences, {tokens} tokens, longest {width}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (_, step) in ways.items():
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    positions = {
        "packed": sum(len(one.input_ids_N) for one in made.ranks[0].microbatches),
        "padded": sum(len(part) * max(len(one.token_ids) for one in part) for part in cut),
        "padded to the batch": len(rows) * width,
    }
    table = Table(title="tokens of sequences per second of one core")
    for column in ("", "positions computed", "waste", "tokens/s (median, least to most)", "packed is faster by"):
        table.add_column(column, justify="right" if column else "left")
    fastest = statistics.median(seconds["packed"])
    for name, taken in seconds.items():
        waste = f"{made.padding_share:.1%} in attention" if name == "packed" else f"{1 - tokens / positions[name]:.1%}"
        rate = f"{tokens / statistics.median(taken):,.0f} ({tokens / max(taken):,.0f} to {tokens / min(taken):,.0f})"
        table.add_row(name, f"{positions[name]:,}", waste, rate, f"{statistics.median(taken) / fastest:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
