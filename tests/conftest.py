"""What tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """One local Ray for all tests; `Cluster` uses what is running and leaves it running."""
    import ray

    from grpo.cluster import start_local_ray

    # More logical CPUs than cores: the learners and generators of a test are started side by side.
    start_local_ray(16)
    yield
    ray.shutdown()
