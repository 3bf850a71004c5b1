"""The parts of the GPU check, in the order in which they run. It imports only the standard library.

A part's function is imported when the part runs, so `--list` answers at once, and nobody needs vLLM for the other
parts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Group = Literal["checks", "measures", "engines"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the check.

    Attributes:
        group: group of the part; its name selects all parts of the group.
        seconds: expected time on a GPU, in seconds. A part does not start if less time than this is left.
        place: `module:function`; the function takes a `Context` and returns a `Result`.
        title: what the part does, in a few words.
        needs_gpu: whether the part cannot run on a CPU.
        needs: packages beside torch, transformers and DeepSpeed.
        gpus: number of GPUs that the part needs.
    """

    group: Group
    seconds: float
    place: str
    title: str
    needs_gpu: bool = False
    needs: tuple[str, ...] = ()
    gpus: int = 1

    def run(self) -> Callable[..., Any]:
        """Import and return the function of the part; it takes a `Context` and returns a `Result`."""
        module, name = self.place.split(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


_ENGINES = ("vllm", "ray")
PARTS = {
    "attention": Part("checks", 8, "gpu_numbers:attention", "both layouts against plain attention"),
    "losses": Part("checks", 8, "gpu_numbers:losses", "losses and gradients, CPU against GPU"),
    "presets": Part("checks", 3, "gpu_numbers:presets", "every preset of the objective, CPU against GPU"),
    "head": Part("checks", 10, "gpu_numbers:head", "the output head in chunks against whole logits"),
    "checkpointing": Part("checks", 8, "gpu_numbers:checkpointing", "gradients and memory with layers computed again"),
    "kernels": Part("checks", 12, "gpu_numbers:kernels", "losses with Liger's kernels", True, ("liger_kernel",)),
    "steps": Part("checks", 30, "gpu_learner:steps", "optimizer steps at ZeRO stages 1, 2, 3 against plain torch"),
    "sleep": Part("checks", 25, "gpu_learner:sleep", "the learner sleeps and wakes"),
    "flash-2": Part("measures", 8, "gpu_flash:flash_2", "attention alone, torch's FlashAttention-2", True),
    "0.6b-varlen": Part("measures", 25, "gpu_speed:small_varlen", "0.6B, RL lengths, varlen"),
    "0.6b-sdpa": Part("measures", 22, "gpu_speed:small_sdpa", "0.6B, RL lengths, sdpa"),
    "1.7b-varlen": Part("measures", 35, "gpu_speed:large_varlen", "1.7B, RL lengths, varlen, checkpointing"),
    "1.7b-16k": Part("measures", 30, "gpu_speed:long_varlen", "1.7B, a sequence of 16k tokens, varlen, checkpointing"),
    "1.7b-whole": Part("measures", 30, "gpu_speed:large_whole", "1.7B, RL lengths, varlen, no checkpointing"),
    "1.7b-sdpa": Part("measures", 38, "gpu_speed:large_sdpa", "1.7B, RL lengths, sdpa, checkpointing"),
    "1.7b-16k-sdpa": Part("measures", 30, "gpu_speed:long_sdpa", "1.7B, a sequence of 16k tokens, sdpa, checkpointing"),
    "flash-3": Part("measures", 15, "gpu_flash:flash_3", "attention alone, FlashAttention 3 if it is installed", True),
    "flash-4": Part("measures", 60, "gpu_flash:flash_4", "attention alone, FlashAttention 4 if it is installed", True),
    "1.7b-auto": Part("measures", 40, "gpu_speed:large_auto", "1.7B, RL lengths, all that `auto` takes"),
    "1.7b-16k-auto": Part("measures", 40, "gpu_speed:long_auto", "1.7B, 16k tokens, all that `auto` takes"),
    "trial": Part("measures", 90, "gpu_flash:trial", "the trial of kernels at the start of a run", True),
    "push": Part("engines", 90, "gpu_engines:push", "proven pushes to vLLM by ipc, on a CPU by gloo", needs=_ENGINES),
    "push-nccl": Part("engines", 90, "gpu_engines:push_nccl", "proven pushes to vLLM by nccl", True, _ENGINES, 2),
    "gsm8k": Part("engines", 120, "gpu_engines:gsm8k", "two steps of configs/gsm8k.yaml", needs=_ENGINES),
}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the names of the parts that `names` select, in the order of `PARTS`; without names, all parts.

    Raises:
        ValueError: a name is neither a part nor a group.
    """
    groups = {part.group for part in PARTS.values()}
    unknown = [name for name in names if name not in PARTS and name not in groups]
    if unknown:
        raise ValueError(f"no part is called {', '.join(unknown)}; choose from {', '.join((*sorted(groups), *PARTS))}")
    return [name for name, part in PARTS.items() if not names or name in names or part.group in names]
