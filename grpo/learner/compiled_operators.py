"""The operator that DeepSpeed compiles on a CPU before the ranks meet. It is compiled once per Python environment."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path


def compile_alone(build: Callable[[], object]) -> None:
    """Run DeepSpeed's `build` while no other process of this environment runs it.

    torch marks a running compile by a file, and every other process waits for its end. The file of a killed process
    stays, so all later starts would wait for ever. The lock used here ends with its process, so its holder may remove
    any mark. Each Python environment has a separate folder for compiled operators: environments that share torch's
    default folder compile again, for half a minute, after each change of environment.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "grpo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for mark in folder.glob("*/lock"):
            mark.unlink()
        build()
