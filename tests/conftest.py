"""What tests of several packages share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch: two processes whose threads spin for the same cores take minutes for seconds of work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the data sets; skips the test where there is none."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("VERIGRPO_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder} (set VERIGRPO_DATA)")
    return folder


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """One local Ray for all tests; `Cluster` uses what is running and leaves it running."""
    import ray

    from grpo.cluster.session import start_local_ray

    # More logical CPUs than cores: the learners and generators of a test are started side by side.
    start_local_ray(16)
    yield
    ray.shutdown()
