"""What a process does of its start."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.start_up import without_collector

ROOT = Path(__file__).resolve().parents[2]


def test_the_collector_is_off_inside_and_as_it_was_after() -> None:
    assert gc.isenabled()
    with pytest.raises(RuntimeError), without_collector():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_actors_class_is_found_without_the_engines_libraries() -> None:
    """A worker of Ray's looks for the class first; what is heavy comes with the start, without the collector."""
    program = (
        "import sys, grpo.cluster.learner_group, grpo.cluster.replica\n"
        "print(*{'torch', 'transformers', 'vllm', 'deepspeed', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
