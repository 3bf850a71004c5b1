"""A run's folder: its content before a job starts, and whether the run is complete."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

import yaml

from grpo import config, files
from grpo.config.file import dump
from grpo.report import run_files
from grpo.report.progress import Progress
from grpo.run import checkpoint
from grpo.run.checkpoint import Checkpoint
from grpo.run.functions import keep_sources
from grpo.visible import visible

logger = logging.getLogger(__name__)


def open_folder(run: config.RunConfig, resolved: config.JobConfig, progress: Progress) -> Checkpoint | None:
    """Make or reopen the run's folder and write the resolved config into it; show changes since the last start.

    Returns:
        The checkpoint to continue from, if any.

    Raises:
        ValueError: the folder holds a run already and `run.resume` is `never`.
    """
    refuse_other_run(run)
    folder = Path(run.folder)
    newest = checkpoint.latest(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / run_files.CONFIG
    for line in changes_since_last_start(resolved) if newest else ():
        progress.show(f"changed since the last start: {line}")
    text = dump(resolved)
    files.write_text(path, text)
    logger.info("%s has the SHA-256 %s", path, hashlib.sha256(text.encode()).hexdigest())
    for line in keep_sources(folder, resolved.functions) if isinstance(resolved, config.TrainConfig) else ():
        progress.show(f"changed since the last start: {line}")
    return newest


def refuse_other_run(run: config.RunConfig) -> None:
    """Check that the folder holds no run, or a run that may resume.

    Raises:
        ValueError: the folder holds a run already and `run.resume` is `never`.
    """
    folder = Path(run.folder)
    if run.resume == "never" and (checkpoint.latest(folder) or (folder / run_files.METRICS).exists()):
        raise ValueError(
            f"{folder} already holds a run; continue it with resume=auto, or choose another run.folder=..."
        )


def changes(before: object, after: object, where: str = "") -> list[str]:
    """Compare two configurations of plain data; return a line with both values for each dotted key that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        inner = (changes(before.get(key), after.get(key), f"{where}.{key}" if where else str(key)) for key in keys)
        return [line for lines in inner for line in lines if not line.startswith("run.resume:")]
    return [] if before == after else [f"{where}: {before!r} -> {after!r}"]


def skipped_folder(run: config.RunConfig) -> str:
    """Return the folder for the learner's batches whose loss or gradient is not finite."""
    return str((Path(run.folder) / run_files.SKIPPED).absolute())


def is_finished(run: config.RunConfig, steps: int) -> bool:
    """Whether the run is complete and `resume` is not `never`."""
    newest = checkpoint.latest(Path(run.folder))
    return run.resume != "never" and newest is not None and newest.step >= steps


def changes_since_last_start(resolved: config.JobConfig) -> list[str]:
    """Return what differs between a configuration and the configuration in the run's folder, if there is one."""
    path = Path(resolved.run.folder) / run_files.CONFIG
    if not path.is_file():
        return []
    return changes(yaml.safe_load(path.read_text(encoding="utf-8")), resolved.model_dump(mode="json"))


def note_fault(folder: Path, line: str) -> None:
    """Add a line to the driver's log and, if the run's folder can be written to, to `faults.log`."""
    logger.warning("%s", line)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    stamped = f"{when} pid {os.getpid()}: {visible(' '.join(line.split()))}\n"
    try:
        with (folder / run_files.FAULTS).open("a", encoding="utf-8") as log:
            log.write(stamped)
    except OSError:
        return
