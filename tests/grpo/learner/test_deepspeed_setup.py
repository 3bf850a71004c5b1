"""The settings that a rank derives from its set-up, without starting DeepSpeed."""

from __future__ import annotations

import dataclasses

import pytest
from setups_for_tests import learner_setups

from grpo import config
from grpo.config.cluster import Device
from grpo.learner.deepspeed_setup import attention_layout
from grpo.policy.attention import PackedLayout, VarlenLayout


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "layout"),
    [
        ("auto", "cpu", "float32", PackedLayout),
        ("auto", "cpu", "bfloat16", PackedLayout),
        ("auto", "cuda", "float32", PackedLayout),
        ("auto", "cuda", "bfloat16", VarlenLayout),
        ("varlen", "cuda", "bfloat16", VarlenLayout),
        ("sdpa", "cuda", "bfloat16", PackedLayout),
    ],
)
def test_attention_without_padding_runs_where_it_can(
    attention: str, device: Device, dtype: config.Dtype, layout: type
) -> None:
    (setup,) = learner_setups("somewhere", dtype=dtype)
    learner = setup.learner.model_copy(update={"attention": attention})
    assert attention_layout(dataclasses.replace(setup, learner=learner, device=device)) is layout


def test_attention_that_the_device_lacks_is_refused() -> None:
    (setup,) = learner_setups("somewhere", dtype="bfloat16")
    learner = setup.learner.model_copy(update={"attention": "varlen"})
    with pytest.raises(ValueError, match="varlen needs a GPU and the learner is on a CPU; use auto or sdpa"):
        attention_layout(dataclasses.replace(setup, learner=learner))


def test_collectives_outlast_every_deadline() -> None:
    cluster = config.ClusterConfig(start_deadline_s=10, step_deadline_s=20)
    assert cluster.longest_wait_s() == 80 and cluster.longest_wait_s(700) == 760
