"""Metrics at Ray's own endpoint, and the dashboard that draws them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from grpo.report.ray_metrics import RayMetricsTracker, gauge_name
from grpo.report.trackers import open_trackers

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_prometheus_finds_the_last_step_at_the_endpoint_of_ray(ray_running: None, tmp_path: Path) -> None:
    (tracker,) = open_trackers(["prometheus"], tmp_path / "quickstart")
    assert isinstance(tracker, RayMetricsTracker)
    tracker.log(6, 1000.0, {"reward/mean": 0.25})
    tracker.log(7, 1001.0, {"reward/mean": 0.5, "verdict/exact answer/wrong": 0.125})
    wanted = {"ray_grpo_step": 7.0, "ray_grpo_reward_mean": 0.5, "ray_grpo_verdict_exact_answer_wrong": 0.125}
    (node,) = ray.nodes()
    endpoint = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    # A cluster of one's own is on loopback, its metrics as well.
    assert endpoint.startswith("http://127.0.0.1:")
    found: dict[str, float] = {}
    deadline = time.monotonic() + 60
    # Ray hands metrics on every few seconds.
    while found != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
        page = urllib.request.urlopen(endpoint, timeout=30).read().decode()
        lines = re.findall(r'^(ray_grpo_\w+)\{.*run="quickstart".*\} (\S+)$', page, re.MULTILINE)
        found = {name: float(value) for name, value in lines}
    assert found == wanted
    tracker.close()


def test_the_dashboard_draws_only_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "launch" / "grafana" / "verigrpo.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    used = {name for one in expressions for name in re.findall(r"ray_grpo_\w+", one)}
    table = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## Metrics")[1].split("## Rollouts")[0]
    documented = {
        "ray_" + gauge_name(name)
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    assert used - documented - {"ray_grpo_step"} == set()
    assert len(used) > 15
    # Every panel is drawn for the runs that are chosen above it.
    assert all('run=~"$run"' in one for one in expressions if "ray_grpo" in one)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
