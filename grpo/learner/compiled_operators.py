"""The operator that DeepSpeed compiles on a CPU before ranks can meet: once per environment, and never in vain."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path


def compile_alone(build: Callable[[], object]) -> None:
    """Run DeepSpeed's `build` while no other process of this environment does.

    torch marks a compile by a file, on which every other process waits, and which stays where its maker was killed:
    all later starts would wait for ever. The kernel's lock goes with its owner, so whoever holds it knows that a mark
    is nobody's. Compiled operators lie in a folder of this Python environment's own: environments that share torch's
    default folder compile anew, for half a minute, each time they take turns.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "grpo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for mark in folder.glob("*/lock"):
            mark.unlink()
        build()
