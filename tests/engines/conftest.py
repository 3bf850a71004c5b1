"""Small random policies for the real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.config import NewPolicyConfig
from grpo.policy.new import make_policy


def policy(folder: Path, *, tied: bool, seed: int) -> str:
    """A random policy of two layers; returns its path."""
    shape = NewPolicyConfig(
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
