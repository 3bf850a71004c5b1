"""Parts of the GPU check for FlashAttention: its kernels alone, and the trial that a run makes before it uses them."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable

import torch
from gpu_context import Context, Wrong
from gpu_outcomes import Result, Skipped
from torch import Tensor

from grpo.algorithm.packing import Place
from grpo.learner import kernels
from grpo.learner.kernel_trial import try_attention
from grpo.policy.attention import VarlenLayout
from grpo.policy.flash import FLASH_KERNELS

# The attention of Qwen3 1.7B, and of 0.6B with another hidden size.
SIZES = kernels.Sizes(heads=16, key_value_heads=8, head_size=128, hidden=2048, vocabulary=151_936)
# Lengths of the sequences in a row of 16k tokens.
ROWS = {"RL": (1365,) * 12, "16k": (16_384,)}
REPEATS = 10


def flash_2(context: Context) -> Result:
    """The speed of torch's FlashAttention for variable lengths."""
    figures = _speeds(context.device, VarlenLayout)
    return Result(_note(figures), figures)


def flash_3(context: Context) -> Result:
    """Correctness and speed of FlashAttention 3."""
    return _newer(context, "fa3")


def flash_4(context: Context) -> Result:
    """Correctness and speed of FlashAttention 4."""
    return _newer(context, "fa4")


def _newer(context: Context, name: str) -> Result:
    kernel = FLASH_KERNELS[name]
    if problem := kernel.problem(kernels.gpu_capability()):
        raise Skipped(f"{kernel.title} {problem}")
    if verdict := try_attention(kernel.layout, SIZES, context.device):
        raise Wrong(verdict)
    figures = _speeds(context.device, kernel.layout)
    return Result(_note(figures), figures)


def trial(context: Context) -> Result:
    """The trial at the start of a run, of every kernel that could run here."""
    capability = kernels.gpu_capability()
    names = (*(name for name, kernel in FLASH_KERNELS.items() if not kernel.problem(capability)), kernels.HEAD)
    # The check replaces this function, because its parts try the kernels themselves.
    verdicts = inspect.unwrap(kernels.tried)(names, SIZES)
    if failed := [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict]:
        raise Wrong("; ".join(failed))
    return Result(f"{', '.join(names)} are right")


def _speeds(device: torch.device, kind: type[VarlenLayout]) -> dict[str, float]:
    """Return FLOP/s of forward and backward passes for each kind of row, in TFLOP/s."""
    figures = {}
    for name, lengths in ROWS.items():
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        places = [Place(start, 1, start + 1, length - 1) for start, length in zip(starts, lengths, strict=True)]
        tokens, layout = sum(lengths), kind(places, device)
        drawn = [
            torch.randn(tokens, heads, SIZES.head_size, device=device, dtype=torch.bfloat16, requires_grad=True)
            for heads in (SIZES.heads, SIZES.key_value_heads, SIZES.key_value_heads)
        ]
        query, key, value = drawn
        output = layout.attend(query, key, value, None)
        weight = torch.randn_like(output)
        # Four FLOPs for each pair and unit of width forward; the backward pass has five products in place of two.
        pairs = sum(length * (length + 1) / 2 for length in lengths) * SIZES.heads * SIZES.head_size
        forward_s = _seconds(lambda at=layout, q=query, k=key, v=value: at.attend(q, k, v, None))
        backward_s = _seconds(
            lambda out=output, to=drawn, by=weight: torch.autograd.grad(out, to, by, retain_graph=True)
        )
        figures[f"forward_tflops_{name}"] = 4 * pairs / forward_s / 1e12
        figures[f"backward_tflops_{name}"] = 10 * pairs / backward_s / 1e12
    return figures


def _seconds(call: Callable[[], Tensor | tuple[Tensor, ...]]) -> float:
    """Return the median seconds of a call on the GPU, after two calls that compile and allocate."""
    seconds = []
    for _ in range(REPEATS + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return statistics.median(seconds[2:])


def _note(figures: dict[str, float]) -> str:
    rows = (
        f"{name} {figures[f'forward_tflops_{name}']:.0f} and {figures[f'backward_tflops_{name}']:.0f}" for name in ROWS
    )
    return f"TFLOP/s forward and backward: {', '.join(rows)}"
