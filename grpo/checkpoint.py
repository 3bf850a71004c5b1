"""Checkpoints: written whole or not at all, found again, and cleared away."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"step_(\d+)")
STATE = "driver.pt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: optimizer or training steps done when it was written.
        folder: holds `policy/` (Hugging Face format), `learner/` (DeepSpeed's state, every rank's), with LoRA
            `adapter/` (peft's format), and the driver's state.
    """

    step: int
    folder: Path

    @property
    def policy(self) -> Path:
        """The policy in Hugging Face format."""
        return self.folder / "policy"

    def driver_state(self) -> dict[str, Any]:
        """What the driver saved: plain data and tensors, read without unpickling anything else."""
        return dict(torch.load(self.folder / STATE, weights_only=True))


def write(
    run_folder: Path, step: int, write_learner: Callable[[str], None], driver_state: dict[str, Any], keep: int
) -> Checkpoint:
    """Write a checkpoint; it appears under its name only when all of it is on disk.

    Args:
        run_folder: the run.
        step: steps done.
        write_learner: writes the learner's part into a folder.
        driver_state: the driver's part.
        keep: how many of the newest checkpoints stay.

    Raises:
        OSError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    parent = run_folder / "checkpoints"
    final, partial = parent / f"step_{step:06d}", parent / f".step_{step:06d}.partial"
    parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_learner(str(partial.absolute()))
        torch.save(driver_state, partial / STATE)
        for path in [*partial.rglob("*"), partial]:
            _to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _to_disk(parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _all(run_folder)[:-keep]:
        shutil.rmtree(old.folder)
    return Checkpoint(step, final)


def latest(run_folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one."""
    found = _all(run_folder)
    return found[-1] if found else None


def _all(run_folder: Path) -> list[Checkpoint]:
    folders = (run_folder / "checkpoints").glob("step_*")
    matches = [(match, folder) for folder in folders if (match := _NAME.fullmatch(folder.name))]
    return sorted((Checkpoint(int(match[1]), folder) for match, folder in matches), key=lambda one: one.step)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
