"""The preflight's probes with real Ray, vLLM, Gloo and sandbox, on this machine as the only node."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from setups_for_tests import CPU

from grpo.cluster.preflight import nodes as preflight
from grpo.cluster.preflight.probes import PROBES, new_weights

pytestmark = [pytest.mark.slow, pytest.mark.long]


class DropsTheUpdate:
    """A generator that takes new weights without using them."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def begin_update(self) -> None:
        return None

    def update(self, bucket: Any) -> list[str]:
        return []

    def finish_update(self, policy_version: int) -> None:
        return None


class ForgetfulProbes(preflight._ProbesActor):
    def _generation(self) -> str:
        told = super()._generation()
        self._generator = DropsTheUpdate(self._generator)
        return told


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(preflight, "_ProbesActor", ForgetfulProbes)
    # Workers cannot import a test's module.
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


def test_this_machine_passes(ray_running: None) -> None:
    before = set(Path(tempfile.gettempdir()).glob("grpo-preflight-*"))
    (outcomes,) = preflight.preflight(CPU, 120).values()
    assert set(Path(tempfile.gettempdir()).glob("grpo-preflight-*")) <= before
    assert [probe for probe in PROBES if not outcomes[probe].passed] == [], outcomes
    assert "1 node(s)" in outcomes["all-reduce"].detail and "proven" in outcomes["weight push"].detail


def test_a_push_that_does_not_arrive_is_noticed(ray_running: None, forgetful: None) -> None:
    (outcomes,) = preflight.preflight(CPU, 120).values()
    assert not outcomes["weight push"].passed and "the weights did not arrive" in outcomes["weight push"].detail
    assert outcomes["generation"].passed and outcomes["sandbox"].passed


def test_the_weights_pushed_are_a_whole_policy() -> None:
    import safetensors.torch

    names = safetensors.torch.load(new_weights().tobytes())
    assert "lm_head.weight" in names and "model.embed_tokens.weight" in names
