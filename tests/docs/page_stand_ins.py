"""Stand-ins for the engine of an evaluation and for a person who looks at a served page."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Sequence
from typing import Any

import uvicorn
from fake_sampler import FakeSampler


class Local(FakeSampler):
    """Stands in for `EngineSampler(settings, model, tokens)`, which is closed at the end."""

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def looked_at(serve: Any) -> Any:
    """Serves in a thread, as long as it takes to ask for the page and the curves of all runs."""

    def run(server: uvicorn.Server, sockets: Sequence[Any]) -> None:
        thread = threading.Thread(target=serve, args=(server, sockets))
        thread.start()
        address = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        with urllib.request.urlopen(address, timeout=20) as page:
            assert b"VeriGRPO" in page.read()
        with urllib.request.urlopen(f"{address}/api/overview", timeout=20) as answer:
            names = [one["name"] for one in json.load(answer)["runs"]]
        print(f"looked at {' '.join(names)}")
        server.should_exit = True
        thread.join(20)

    return run
