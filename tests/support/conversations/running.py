"""Whether a process runs. A process may end between two looks at it."""

from __future__ import annotations

import time
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def dies(pid: int, wait_s: float = 60.0) -> bool:
    """Whether the process dies within `wait_s` seconds."""
    until = time.monotonic() + wait_s
    while is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
