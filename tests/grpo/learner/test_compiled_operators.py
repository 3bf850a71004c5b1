"""Compiling an operator: one process at a time, and what a killed one left does not stop the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from grpo.learner.compiled_operators import compile_alone

COMPILES = """
import sys, time
from pathlib import Path
from grpo.learner.compiled_operators import compile_alone

def build():
    folder = Path(sys.argv[1]) / "operator"
    folder.mkdir(exist_ok=True)
    # As torch does it: exclusive creation, and removal at the end, which a killed process does not come to.
    (folder / "lock").touch(exist_ok=False)
    (folder / f"started-{sys.argv[2]}").touch()
    time.sleep(float(sys.argv[2]))
    (folder / "lock").unlink()

compile_alone(build)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder)}
    return subprocess.Popen([sys.executable, "-c", COMPILES, str(folder), str(seconds)], env=environment)


def wait_until_started(folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + 60
    while not (folder / "operator" / f"started-{seconds}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_compile_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = start(tmp_path, 600.0)
    wait_until_started(tmp_path, 600.0)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    mark = tmp_path / "operator" / "lock"
    assert mark.exists()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    built = []

    def build() -> None:
        # torch's own lock, on which it would wait for ever.
        assert FileBaton(str(mark)).try_acquire()
        built.append(True)

    compile_alone(build)
    assert built == [True]


def test_a_running_compile_keeps_its_mark_and_others_wait(tmp_path: Path) -> None:
    first = start(tmp_path, 1.5)
    wait_until_started(tmp_path, 1.5)
    # Were the first one's mark taken away, the second would start at once and the first fail to remove its own.
    second = start(tmp_path, 0.0)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    started = [(tmp_path / "operator" / f"started-{seconds}").stat().st_mtime for seconds in (1.5, 0.0)]
    assert started[1] - started[0] >= 1.4


def test_each_environment_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    compile_alone(lambda: None)
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")
    assert (tmp_path / "torch_extensions").is_dir()
