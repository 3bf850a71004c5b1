"""A machine without a network asks the hub once, and then reads its cache."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from grpo.hub_access import why_offline
from grpo.policy.hub import ask_hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has asked, and what an answer changes is undone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    why_offline.cache_clear()
    yield
    why_offline.cache_clear()


def offline() -> list[object]:
    from datasets import config
    from huggingface_hub import constants

    return [constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]]


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    said = ask_hub("Qwen/Qwen3-0.6B")
    assert said.startswith(f"{address} does not answer from here (") and "refused" in said
    # This process, its libraries and the processes that it starts read the cache.
    assert offline() == [True, True, "1"]
    assert ask_hub("another/name") == said, "not asked again"


def test_a_hub_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbids(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Forbids) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert why_offline() == "" and offline() == [False, False, "0"]


def test_a_folder_needs_no_hub(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("grpo.policy.hub.why_offline", lambda: pytest.fail("the hub was asked"))
    assert ask_hub(str(tmp_path)) == ""


def test_the_variable_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert why_offline().startswith("HF_HUB_OFFLINE is set")
