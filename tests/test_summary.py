"""The end of a test run names the tests that no machine without a GPU runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="needs a CUDA device")
@pytest.mark.parametrize("size", [1, 2])
def test_on_a_gpu(size): ...

@pytest.mark.gpu
def test_on_a_gpu_that_is_here(): ...

@pytest.mark.skip(reason="no network")
def test_something_else(): ...
"""
HOW = "On a machine with a GPU: make install-gpu && .venv-gpu/bin/python -m pytest -m gpu"


def run(folder: Path, *arguments: str) -> list[str]:
    """Lines of a run of pytest with this project's conftest, without the settings of the run that this test is in."""
    (folder / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a CUDA device\n", encoding="utf-8")
    # Where a folder has the name of the mark, its tests do not have the mark for that.
    inner = folder / "gpu" / "test_inner.py"
    inner.parent.mkdir()
    inner.write_text(TESTS, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("arguments", [(), ("-n", "2", "--dist", "loadfile")], ids=["alone", "side by side"])
def test_skipped_for_lack_of_a_gpu_is_named_with_the_way_to_run_it(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    lines = run(tmp_path, *arguments)
    (head,) = [number for number, line in enumerate(lines) if "2 not run: no GPU" in line]
    assert lines[head + 1 : head + 4] == [f"gpu/test_inner.py::test_on_a_gpu[{size}]" for size in (1, 2)] + [HOW]


def test_nothing_is_said_where_no_such_test_was_skipped(tmp_path: Path) -> None:
    lines = run(tmp_path, "-k", "something_else or is_here")
    assert not any("no GPU" in line or HOW in line for line in lines)
    assert any("1 passed, 1 skipped" in line for line in lines)


def test_the_way_to_run_them_exists() -> None:
    assert "\ninstall-gpu:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "gpu: needs a CUDA device" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
