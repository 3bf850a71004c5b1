"""The real engines for tests: Ray, started once, and small random policies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.config import NewPolicy
from grpo.policy import make_policy


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """One local Ray for all tests; `Cluster` uses what is running and leaves it running."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")
    # More logical CPUs than cores: the learners and generators of a test are started side by side.
    ray.init(
        num_cpus=16, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


def policy(folder: Path, *, tied: bool, seed: int) -> str:
    """A random policy of two layers; returns its path."""
    shape = NewPolicy(
        hidden_size=64,
        layers=2,
        heads=2,
        key_value_heads=1,
        intermediate_size=96,
        tie_embeddings=tied,
        max_position=256,
    )
    make_policy(shape, [], folder, seed)
    return str(folder)


@pytest.fixture(scope="session")
def tied_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return policy(tmp_path_factory.mktemp("tied") / "policy", tied=True, seed=1)


@pytest.fixture(scope="session")
def untied_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return policy(tmp_path_factory.mktemp("untied") / "policy", tied=False, seed=2)
