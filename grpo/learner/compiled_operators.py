"""DeepSpeed compiles an operator for CPUs before the ranks connect. This happens once per Python environment."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path


def compile_alone(build: Callable[[], object]) -> None:
    """Run DeepSpeed's `build` while no other process of this environment runs it.

    During a compilation, torch keeps a mark file, and every other process waits until the file is gone. A killed
    process leaves its mark file behind, so all later starts would wait for ever. The lock used here ends with its
    process, so the process that holds the lock may remove every mark file. Each Python environment has a separate
    folder for compiled operators: if environments share torch's default folder, the operator is compiled again, for
    half a minute, after each change of environment.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "grpo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for mark in folder.glob("*/lock"):
            mark.unlink()
        build()
