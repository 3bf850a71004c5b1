"""What Ray opens to the network when a run starts it, and how the driver waits for it."""

from __future__ import annotations

import time

import pytest
import ray
from setups_for_tests import listening_sockets

from grpo.cluster.waiting import wait_for

pytestmark = pytest.mark.slow


def test_every_port_is_on_loopback(ray_running: None) -> None:
    @ray.remote
    class Actor:
        def address(self) -> str:
            return str(ray.util.get_node_ip_address())

    actor = Actor.remote()
    assert ray.get(actor.address.remote(), timeout=60) == "127.0.0.1"
    listening = listening_sockets()
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}, "Ray's servers are among the children"
    assert all(address.removeprefix("::ffff:") in ("127.0.0.1", "::1") for _, address in listening), listening
    ray.kill(actor)


def test_the_driver_may_work_while_it_waits(ray_running: None) -> None:
    @ray.remote
    def slow(seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    worked: list[float] = []
    waiting = [slow.remote(1.0), slow.remote(0.0)]
    assert wait_for(waiting, 60, "two", lambda: worked.append(time.monotonic())) == ["done", "done"]
    assert len(worked) >= 3
    # What it does meanwhile does not put the deadline off.
    with pytest.raises(TimeoutError, match=r"1 of 1 did not come within 1 s \(number 0\): a long one"):
        wait_for([slow.remote(30.0)], 0.6, "a long one", lambda: worked.append(time.monotonic()))
