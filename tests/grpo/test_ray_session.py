"""How a job gets its Ray."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psutil
import pytest
import ray

from grpo import ray_session

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


class Starting:
    """In place of `ray.init`: leaves a process behind, then fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, **options: Any) -> None:
        assert options["address"] == "local" and options["num_cpus"] == 3
        self.processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        if self.failures:
            raise self.failures.pop(0)

    def end(self) -> list[bool]:
        """End what still runs; whether each did."""
        ran = [process.poll() is None for process in self.processes]
        for process in self.processes:
            process.kill()
            process.wait()
        return ran


def start(monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> tuple[Exception | None, list[bool]]:
    starting, raised = Starting(*failures), None
    monkeypatch.setattr(ray, "init", starting)
    try:
        ray_session.start_local_ray(3)
    except Exception as failure:
        raised = failure
    psutil.wait_procs([psutil.Process(one.pid) for one in starting.processes[:-1]], timeout=10)
    return raised, starting.end()


def test_a_node_that_was_late_is_ended_and_another_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, Exception(LATE)) == (None, [False, True])


def test_late_twice_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    raised, ran = start(monkeypatch, Exception(LATE), Exception(LATE))
    assert isinstance(raised, TimeoutError) and "within the 30 s" in str(raised)
    assert ran[0] is False and len(ran) == 2


@pytest.mark.parametrize("failure", [Exception("something else"), RuntimeError(LATE), ValueError("bad")])
def test_whatever_else_fails_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    assert start(monkeypatch, failure) == (failure, [True])


@pytest.mark.parametrize("wanted", ["auto", "gpu"])
def test_a_run_that_has_lost_its_gpus_still_wants_them(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    monkeypatch.setattr(ray_session, "_CHOSEN", {})
    resources = {"GPU": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert ray_session.choose_device(wanted) == "cuda"
    resources.clear()
    assert ray_session.choose_device(wanted) == "cuda"


def test_gpus_that_were_never_there_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_CHOSEN", {})
    monkeypatch.setattr(ray, "cluster_resources", dict)
    assert ray_session.choose_device("auto") == ray_session.choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="the cluster has no GPU"):
        ray_session.choose_device("gpu")
