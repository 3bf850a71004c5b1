"""Python stacks of processes, read by py-spy in another process. So stacks of processes that hang can be read too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

# Longest time of a dump, in seconds. A dump takes a tenth of a second, unless the machine has a problem.
_DUMP_S = 20.0


def dump(pids: Iterable[int]) -> dict[int, str]:
    """Return the Python stacks of local processes and their children or, instead of a missing stack, the cause."""
    return {pid: _dump(pid) for pid in pids}


def _dump(pid: int) -> str:
    try:
        # py-spy would wait for a stopped process when it pauses the process, so this command does not pause it.
        command = [_py_spy(), "dump", "--nonblocking", "--subprocesses", "--pid", str(pid)]
        state = psutil.Process(pid).status()
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DUMP_S, check=False)
    except psutil.NoSuchProcess:
        return f"process {pid} has ended"
    except FileNotFoundError:
        return "py-spy is not installed on this node (pip install py-spy)"
    except subprocess.TimeoutExpired:
        return f"py-spy did not finish within {_DUMP_S:.0f} s"
    notice = "this process is stopped (SIGSTOP, or a debugger)\n" if state == psutil.STATUS_STOPPED else ""
    if done.returncode == 0:
        return notice + done.stdout
    reason = done.stderr.strip().splitlines()[-1:] or ["no error message"]
    refused = "ermission" in done.stderr or "not permitted" in done.stderr
    remedy = (
        "; the right to trace processes is missing: run as root, grant CAP_SYS_PTRACE (containers: --cap-add "
        "SYS_PTRACE), or set kernel.yama.ptrace_scope=0"
    )
    return f"{notice}py-spy could not read process {pid}: {reason[0]}{remedy if refused else ''}"


def _py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy") or "py-spy"
