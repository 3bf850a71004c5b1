"""A run's metrics through Ray's own Prometheus exporter: the third part of the Ray room.

Each node of a Ray cluster has an endpoint that Prometheus scrapes; what the driver sets here appears there beside Ray's
own figures, as `ray_grpo_reward_mean{run="quickstart"}` for `reward/mean`. launch/grafana/verigrpo.json draws them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ray.util.metrics import Gauge


class RayMetricsTracker:
    """Gauges with the value of the last step. They go when the driver does; Prometheus keeps their history."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is made yet: Ray is started after the trackers are."""
        self._run = run_dir.resolve().name
        self._gauges: dict[str, Gauge] = {}

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        for name, value in {"step": float(step), **metrics}.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(gauge_name(name), description=f"{name} (docs/metrics.md)", tag_keys=("run",))
            self._gauges[name].set(value, {"run": self._run})

    def truncate_after(self, step: int) -> None:
        # A gauge has no history of its own.
        return None

    def close(self) -> None:
        self._gauges.clear()


def gauge_name(metric: str) -> str:
    """What a metric is called for Ray, which puts `ray_` before it: letters, digits and underscores."""
    return "grpo_" + re.sub(r"[^A-Za-z0-9_]", "_", metric)
