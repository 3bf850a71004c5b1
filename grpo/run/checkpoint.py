"""Checkpoints: write a checkpoint (complete, or not at all), find the newest checkpoint, and delete old checkpoints."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from grpo import files
from grpo.deferred import deferred
from grpo.report import run_files

if TYPE_CHECKING:
    import torch
else:
    torch = deferred("torch")

STATE = "driver.pt"
# If an error does not say that the disk is full, the disk counts as full if fewer bytes than this are free.
_LITTLE = 1 << 20
_MARGIN_SHARE = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: number of optimizer or training steps before the checkpoint.
        folder: folder with `policy/` (Hugging Face format), `learner/` (DeepSpeed's state of all ranks) and the
            driver's state. With LoRA, the folder also has `adapter/` (peft's format).
    """

    step: int
    folder: Path

    @property
    def policy(self) -> Path:
        """The policy in Hugging Face format."""
        return self.folder / run_files.POLICY

    def driver_state(self) -> dict[str, Any]:
        """Load the driver's part. This part may hold only plain data and tensors, because unpickling is restricted."""
        return dict(torch.load(self.folder / STATE, weights_only=True))


class NoRoom(OSError):
    """The disk has too little free space for a checkpoint; the message says how much is missing and what to do."""


def write(
    run_folder: Path, step: int, write_learner: Callable[[str], None], driver_state: dict[str, Any], keep: int
) -> Checkpoint:
    """Write a checkpoint. Its folder gets the final name only after the whole checkpoint is on disk.

    Args:
        run_folder: the run's folder.
        step: number of finished steps.
        write_learner: function that writes the learner's part into a folder.
        driver_state: the driver's part.
        keep: number of newest checkpoints to keep.

    Raises:
        NoRoom: the disk is full, or has too little free space before the first write. Older checkpoints stay.
        OSError: the checkpoint cannot be written for another reason. Older checkpoints stay.
    """
    parent = run_folder / run_files.CHECKPOINTS
    final = parent / run_files.step_name(step)
    parent.mkdir(parents=True, exist_ok=True)
    for partial_folder in parent.glob(".step_*.partial"):
        shutil.rmtree(partial_folder, ignore_errors=True)
    newest = latest(run_folder)
    # All checkpoints of a run have the same size. The oldest is deleted only after the new checkpoint is complete.
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
    # Libraries that write tensors report a full disk with other errors, which have no error number.
    except (OSError, RuntimeError, SafetensorError) as failure:
        if free > max(_LITTLE, needed - written) and not _says_full(failure):
            raise
        raise _no_room(parent, step, max(needed, written), newest, "was given up") from failure
    for old in _all(run_folder)[:-keep]:
        shutil.rmtree(old.folder)
    logger.info("the checkpoint of step %d is whole: %s, %s", step, final, _in_units(_size(final)))
    return Checkpoint(step, final)


def _no_room(parent: Path, step: int, needed: int, newest: Checkpoint | None, fate: str) -> NoRoom:
    free = _free(parent)
    stays = f"the checkpoint of step {newest.step} is whole and stays" if newest else "there is no earlier checkpoint"
    # The run also writes metrics, rollouts and the report, so a margin is added to the missing bytes.
    missing = max(needed - free, 0) + _MARGIN_SHARE * needed
    takes = f"{'' if newest else 'more than '}{_in_units(needed)}"
    return NoRoom(
        errno.ENOSPC,
        f"{os.strerror(errno.ENOSPC)}: the checkpoint of step {step} {fate}: it needs {takes} and the disk has "
        f"{_in_units(free)} free; {stays}. Free {_in_units(missing)} more, or lower train.keep_checkpoints, then "
        "continue with resume=auto",
        str(parent),
    )


def _says_full(failure: BaseException) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(failure, "errno", None) in codes or any(os.strerror(code) in str(failure) for code in codes)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_units(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size, 1) / 2**20:.2f} MiB"


def latest(run_folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, if any."""
    checkpoints = _all(run_folder)
    return checkpoints[-1] if checkpoints else None


def _all(run_folder: Path) -> list[Checkpoint]:
    parent = run_folder / run_files.CHECKPOINTS
    return [Checkpoint(step, parent / run_files.step_name(step)) for step in run_files.steps_in(parent)]
