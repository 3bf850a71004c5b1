"""Wait for every node of a Ray cluster: `python -m launch.ready ADDRESS NODES DEADLINE_S`."""

from __future__ import annotations

import logging
import socket
import sys
import time

from grpo.visible import visible

POLL_S = 1.0


def wait_for_port(address: str, deadline: float) -> bool:
    """Whether something answers at `host:port` before `deadline` (a time of `time.monotonic`)."""
    host, port = address.rsplit(":", 1)
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=POLL_S).close()
        except OSError:
            time.sleep(POLL_S)
        else:
            return True
    return False


def wait_for_nodes(address: str, wanted: int, deadline_s: float) -> list[str]:
    """Wait until `wanted` nodes are alive; return their names.

    Raises:
        TimeoutError: some nodes did not join within `deadline_s`; the message names the nodes that joined.
    """
    deadline = time.monotonic() + deadline_s
    if not wait_for_port(address, deadline):
        raise TimeoutError(f"Ray's head did not answer at {address} within {deadline_s:.0f} s; look at its log")
    import ray

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        while True:
            alive = sorted(str(node["NodeName"]) for node in ray.nodes() if node["Alive"])
            if len(alive) >= wanted:
                return alive
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{len(alive)} of {wanted} nodes joined within launch.nodes_deadline_s={deadline_s:.0f}: "
                    f"{', '.join(alive)}; the others' logs say why (a firewall between nodes, another Ray version)"
                )
            time.sleep(POLL_S)
    finally:
        ray.shutdown()


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 if all nodes joined."""
    address, wanted, deadline_s = arguments[0], int(arguments[1]), float(arguments[2])
    try:
        joined = wait_for_nodes(address, wanted, deadline_s)
    except (TimeoutError, ConnectionError) as failure:
        print(visible(f"grpo: {failure}"), file=sys.stderr)
        return 1
    print(visible(f"grpo: {len(joined)} Ray nodes are up: {', '.join(joined)}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
