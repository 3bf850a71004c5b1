"""What tests of several packages share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Tests assert behaviour, not speed: on a busy machine a single example may take longer than Hypothesis' 200 ms.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")
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


# A mark that a report of a test carries, also from the process of another worker.
NEEDS_GPU = ("needs", "GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            item.user_properties.append(NEEDS_GPU)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that nobody ran for lack of a GPU. A green run says nothing about them."""
    skipped = terminalreporter.stats.get("skipped", [])
    names = sorted({each.nodeid for each in skipped if NEEDS_GPU in map(tuple, getattr(each, "user_properties", ()))})
    if names:
        terminalreporter.section(f"{len(names)} not run: no GPU", sep="-")
        terminalreporter.line("\n".join(names))
        terminalreporter.line("On a machine with a GPU: make install-gpu && .venv-gpu/bin/python -m pytest -m gpu")
