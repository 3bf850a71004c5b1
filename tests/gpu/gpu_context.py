"""Where a part of the GPU check runs, and how it compares numbers."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Largest relative difference to a result in float64 that rounding explains. The inputs of both are the same, so only
# the arithmetic differs. On a CPU the largest differences of the parts are 4e-6 and 0.04.
LIMITS = {torch.float32: 5e-5, torch.bfloat16: 0.1}
# Number formats that the parts try.
DTYPES = (torch.float32, torch.bfloat16)


class Wrong(AssertionError):
    """A part computed something that it should not have."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a part runs.

    Attributes:
        device: device under test; the reference is always computed on the CPU.
        tiny: whether shapes are small enough for a test on a CPU.
        folder: folder for policies, which all parts of a run share.
        seconds: time that the part should take, in seconds. A part that measures takes fewer steps if it is slow.
    """

    device: torch.device
    tiny: bool
    folder: Path
    seconds: float

    @property
    def on_gpu(self) -> bool:
        """Whether the device under test is a GPU."""
        return self.device.type == "cuda"


def difference(found: Tensor, expected: Tensor, least: float = 1e-30) -> float:
    """Return the norm of the difference, relative to the norm of what is expected; both are compared in float64.

    A norm of less than `least` counts as `least`.
    """
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if found.shape != expected.shape:
        raise Wrong(f"shape {tuple(found.shape)} in place of {tuple(expected.shape)}")
    return float((found - expected).norm() / expected.norm().clamp_min(least))


class Differences:
    """The largest difference for each number format; a difference beyond the limit is an error at once."""

    def __init__(self) -> None:
        """Start without differences."""
        self.largest: dict[str, float] = {}

    def add(self, what: str, found: Tensor, expected: Tensor, dtype: torch.dtype, least: float = 1e-30) -> None:
        """Compare a result with the expected result. `least` is the size of a number that is small by cancellation.

        Raises:
            Wrong: the difference is not a number, or beyond what rounding in `dtype` explains.
        """
        value, name = difference(found, expected, least), str(dtype).removeprefix("torch.")
        if not value <= LIMITS[dtype]:
            raise Wrong(f"{what} in {name}: relative difference {value:.1e}, more than {LIMITS[dtype]:.0e}")
        self.largest[name] = max(self.largest.get(name, 0.0), value)

    def note(self) -> str:
        """Return the largest differences as text."""
        return ", ".join(f"{name} within {value:.0e}" for name, value in self.largest.items())

    def figures(self) -> dict[str, float]:
        """Return the largest differences by name."""
        return {f"difference_{name}": value for name, value in self.largest.items()}


def release(device: torch.device) -> int:
    """Give cached memory back; return the bytes of the GPU that are still in use."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)
