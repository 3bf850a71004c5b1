"""What Ray opens to the network when a run starts it."""

from __future__ import annotations

import psutil
import pytest
import ray

pytestmark = pytest.mark.slow


def test_every_port_is_on_loopback(ray_running: None) -> None:
    @ray.remote
    class Actor:
        def address(self) -> str:
            return str(ray.util.get_node_ip_address())

    actor = Actor.remote()
    assert ray.get(actor.address.remote(), timeout=60) == "127.0.0.1"
    listening = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                listening.append((process.name(), connection.laddr.ip))
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}, "Ray's servers are among the children"
    assert all(address.removeprefix("::ffff:") in ("127.0.0.1", "::1") for _, address in listening), listening
    ray.kill(actor)
