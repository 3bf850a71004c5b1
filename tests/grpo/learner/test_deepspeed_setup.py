"""The settings that a rank derives from its set-up, without starting DeepSpeed."""

from __future__ import annotations

from grpo import config


def test_collectives_outlast_every_deadline() -> None:
    cluster = config.ClusterConfig(start_deadline_s=10, step_deadline_s=20)
    assert cluster.longest_wait_s() == 80 and cluster.longest_wait_s(700) == 760
