"""Parts of the GPU check that time attention alone: torch's FlashAttention-2, and FlashAttention 4 where it is found.

Training does not use FlashAttention 4. These parts show on the first day with a GPU whether it is right and faster.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path

import gpu_vllm_flash
import torch
from gpu_context import Context
from gpu_numbers import attention
from gpu_outcomes import Result, Skipped
from torch import Tensor

from grpo.algorithm.packing import Place
from grpo.policy.attention import VarlenLayout

# Query heads, key-value heads and head size of Qwen3 0.6B and 1.7B.
HEADS, KEY_VALUE_HEADS, SIZE = 16, 8, 128
# Lengths of the sequences in a row of 16k tokens.
ROWS = {"RL": (1365,) * 12, "16k": (16_384,)}
# Where torch can find FlashAttention 4: the package flash-attn-4, or vLLM's GPU build.
SOURCES = {"flash_attn.cute.interface": "flash_attn.cute.interface", gpu_vllm_flash.SOURCE: "gpu_vllm_flash"}
REPEATS = 10


def flash_2(context: Context) -> Result:
    """The speed of torch's FlashAttention for variable lengths."""
    figures = _speeds(context.device)
    return Result(_note(figures), figures)


def flash_4(context: Context) -> Result:
    """Correctness and speed of FlashAttention 4 in place of torch's FlashAttention-2."""
    from torch.nn.attention._fa4 import register_flash_attention_fa4

    major = torch.cuda.get_device_capability(context.device)[0]
    if major not in (9, 10):
        raise Skipped(f"it needs a GPU of compute capability 9 or 10, and this GPU has {major}")
    handle = register_flash_attention_fa4(found_module())
    try:
        right = attention(context)
        figures = {**right.figures, **_speeds(context.device)}
    finally:
        handle.remove()
    return Result(f"{_note(figures)}; {right.note}", figures)


def found_module() -> str:
    """Return the module that brings FlashAttention 4.

    Raises:
        Skipped: no installed package brings it.
    """
    for package, module in SOURCES.items():
        if _installed(package):
            return module
    raise Skipped("no package brings FlashAttention 4: it needs flash-attn-4, or vLLM's GPU build")


def _installed(module: str) -> bool:
    """Return whether a module's file is there. Nothing is imported: vLLM's CPU build refuses the import."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return any(Path(folder, *inner).with_suffix(".py").is_file() for folder in folders or ())


def _speeds(device: torch.device) -> dict[str, float]:
    """Return FLOP/s of forward and backward passes for each kind of row, in TFLOP/s."""
    figures = {}
    for name, lengths in ROWS.items():
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        places = [Place(start, 1, start + 1, length - 1) for start, length in zip(starts, lengths, strict=True)]
        tokens, layout = sum(lengths), VarlenLayout(places, device)
        drawn = [
            torch.randn(tokens, heads, SIZE, device=device, dtype=torch.bfloat16, requires_grad=True)
            for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
        ]
        query, key, value = drawn
        output = layout.attend(query, key, value, None)
        weight = torch.randn_like(output)
        # Four FLOPs for each pair and unit of width forward; the backward pass has five products in place of two.
        pairs = sum(length * (length + 1) / 2 for length in lengths) * HEADS * SIZE
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
