"""Export a run's metrics through Ray's Prometheus exporter.

Each node of a Ray cluster has an endpoint that Prometheus scrapes. The driver's metrics appear there beside Ray's
metrics, as `ray_grpo_reward_mean{run="quickstart"}` for `reward/mean`. launch/grafana/verigrpo.json draws the metrics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ray.util.metrics import Gauge


class RayMetricsTracker:
    """Gauges that show the values of the last step until the driver ends. Prometheus keeps their history."""

    def __init__(self, run_dir: Path) -> None:
        """Make no gauge yet, because Ray starts after the trackers."""
        self._run = run_dir.resolve().name
        self._gauges: dict[str, Gauge] = {}

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        for name, value in {"step": float(step), **metrics}.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(gauge_name(name), description=f"{name} (docs/metrics.md)", tag_keys=("run",))
            self._gauges[name].set(value, {"run": self._run})

    def truncate_after(self, step: int) -> None:
        # A gauge has no history.
        return None

    def close(self) -> None:
        self._gauges.clear()


def gauge_name(metric: str) -> str:
    """The metric's name for Ray: letters, digits and underscores. Ray adds `ray_` at the begin of this name."""
    return "grpo_" + re.sub(r"[^A-Za-z0-9_]", "_", metric)
