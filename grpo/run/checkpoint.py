"""Checkpoints: written whole or not at all, found again, and cleared away."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from grpo import files
from grpo.report import run_files

STATE = "driver.pt"
# Bytes free at most on a disk that is called full where there is no other sign of it.
_LITTLE = 1 << 20
_MARGIN_SHARE = 0.1

logger = logging.getLogger(__name__)


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
        return self.folder / run_files.POLICY

    def driver_state(self) -> dict[str, Any]:
        """What the driver saved: plain data and tensors, read without unpickling anything else."""
        return dict(torch.load(self.folder / STATE, weights_only=True))


class NoRoom(OSError):
    """The disk has no room for a checkpoint; the message says how much is missing and what to do."""


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
        NoRoom: the disk is full, or is seen beforehand not to hold it; older checkpoints are untouched.
        OSError: it cannot be written; older checkpoints are untouched.
    """
    parent = run_folder / run_files.CHECKPOINTS
    final = parent / run_files.step_name(step)
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(".step_*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    newest = latest(run_folder)
    # Checkpoints of a run are all alike, and the oldest is only deleted when the new one is whole.
    needed = _size(newest.folder) if newest else 0
    written, free = 0, _free(parent)
    if needed > free:
        raise _no_room(parent, step, needed, newest, "was not begun")
    try:
        with files.whole_folder(final, durable=True) as partial:
            try:
                write_learner(str(partial.absolute()))
                torch.save(driver_state, partial / STATE)
            finally:
                written, free = _size(partial), _free(parent)
    # What writes tensors tells a full disk by an error of its own, without its number.
    except (OSError, RuntimeError, SafetensorError) as failure:
        if free > max(_LITTLE, needed - written) and not _says_full(failure):
            raise
        raise _no_room(parent, step, max(needed, written), newest, "was given up") from failure
    for old in _all(run_folder)[:-keep]:
        shutil.rmtree(old.folder)
    logger.info("the checkpoint of step %d is whole: %s, %s", step, final, _told(_size(final)))
    return Checkpoint(step, final)


def _no_room(parent: Path, step: int, needed: int, newest: Checkpoint | None, fate: str) -> NoRoom:
    free = _free(parent)
    stays = f"the one of step {newest.step} is whole and stays" if newest else "there is none yet to go on from"
    # Some of what is free is taken by what the run writes beside: metrics, rollouts, the report.
    missing = max(needed - free, 0) + _MARGIN_SHARE * needed
    takes = f"{'' if newest else 'more than '}{_told(needed)}"
    return NoRoom(
        errno.ENOSPC,
        f"{os.strerror(errno.ENOSPC)}: the checkpoint of step {step} {fate}: it takes {takes} and the disk has "
        f"{_told(free)} left; {stays}. Make room for {_told(missing)} more, or lower train.keep_checkpoints, then go "
        "on by resume=auto",
        str(parent),
    )


def _says_full(failure: BaseException) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(failure, "errno", None) in codes or any(os.strerror(code) in str(failure) for code in codes)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _told(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size, 1) / 2**20:.2f} MiB"


def latest(run_folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one."""
    found = _all(run_folder)
    return found[-1] if found else None


def _all(run_folder: Path) -> list[Checkpoint]:
    parent = run_folder / run_files.CHECKPOINTS
    return [Checkpoint(step, parent / run_files.step_name(step)) for step in run_files.steps_in(parent)]
