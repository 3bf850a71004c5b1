"""`grpo check --cluster`: how outcomes of nodes come together, without engines."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from grpo.cli import app as cli
from grpo.cluster.preflight import probes
from grpo.cluster.preflight.probes import PROBES, ProbeOutcome, probe_all, table_of


class Node:
    """A node whose probes say what the test wants."""

    def __init__(self, name: str, outcomes: dict[str, ProbeOutcome | Exception]) -> None:
        self.name = name
        self.outcomes = outcomes
        self.called: dict[str, tuple[Any, ...]] = {}

    def all_reduce(self, *arguments: Any) -> Callable[[], ProbeOutcome]:
        return self._start("all_reduce", *arguments)

    def generation(self) -> Callable[[], ProbeOutcome]:
        return self._start("generation")

    def weight_push(self, bucket: Any) -> Callable[[], ProbeOutcome]:
        return self._start("weight_push", bucket)

    def sandbox(self) -> Callable[[], ProbeOutcome]:
        return self._start("sandbox")

    def _start(self, probe: str, *arguments: Any) -> Callable[[], ProbeOutcome]:
        self.called[probe] = arguments

        def wait() -> ProbeOutcome:
            outcome = self.outcomes.get(probe, ProbeOutcome(True, "1 ms"))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return wait

    def address(self) -> tuple[str, int]:
        return "10.0.0.1", 4000


def test_all_nodes_meet_at_the_first_one_and_each_gets_the_weights() -> None:
    nodes = [Node(name, {}) for name in "abc"]
    found = probe_all(nodes, "bucket", 9.0)
    assert [node.called["all_reduce"] for node in nodes] == [("10.0.0.1", 4000, rank, 3, 9.0) for rank in range(3)]
    assert all(node.called["weight_push"] == ("bucket",) for node in nodes)
    assert {name: tuple(outcomes) for name, outcomes in found.items()} == dict.fromkeys("abc", PROBES)


def test_ranks_meet_at_one_address_and_not_at_every_one_of_the_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The second rank never comes, so the first one listens until its deadline.
    call = f"NodeProbes('cpu').all_reduce('127.0.0.1', {port}, 0, 2, 8.0)"
    program = f"from grpo.cluster.preflight.probes import NodeProbes\nprint({call})"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            deadline, found = time.monotonic() + 60, set[str]()
            while not found and process.poll() is None and time.monotonic() < deadline:
                listening = [one for one in psutil.Process(process.pid).net_connections() if one.status == "LISTEN"]
                found = {one.laddr.ip for one in listening if one.laddr.port == port}
                time.sleep(0.05)
        finally:
            process.kill()
    assert found == {"127.0.0.1"}


def test_a_node_that_hangs_or_dies_does_not_hide_the_others() -> None:
    hanging = Node("a", {"generation": TimeoutError("did not come"), "sandbox": ProbeOutcome(False, "no [namespaces]")})
    found = probe_all([hanging, Node("b", {"all_reduce": RuntimeError("died")})], None, 1.0)
    assert found["a"]["generation"] == ProbeOutcome(False, "did not come")
    assert found["a"]["weight push"].passed and found["b"]["generation"].passed
    assert found["b"]["all-reduce"] == ProbeOutcome(False, "died")
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("FAILED") == 3 and "FAILED no [namespaces]" in text and text.count("ok 1 ms") == 5


@pytest.mark.parametrize("passed", [True, False])
def test_the_command_fails_where_a_node_does(monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
    import grpo.cluster.preflight.nodes
    import grpo.planning.check

    outcomes = {probe: ProbeOutcome(passed or probe != "sandbox", "told") for probe in PROBES}
    monkeypatch.setattr(grpo.planning.check, "show_plan", lambda settings, console, gold_limit, full: True)
    monkeypatch.setattr(grpo.cluster.preflight.nodes, "preflight", lambda settings, deadline_s: {"node-a": outcomes})
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["check", "configs/quickstart.yaml", "--cluster"])
    assert result.exit_code == (0 if passed else 1)
    assert "node-a" in result.stdout and ("FAILED told" in result.stdout) == (not passed)


def test_a_probe_s_failure_is_told_and_not_raised() -> None:
    def fails() -> str:
        raise OSError("no such\ndevice")

    assert probes._tried(fails) == ProbeOutcome(False, "OSError: no such device")


def test_a_mistake_of_ours_is_not_taken_for_the_node_s() -> None:
    def mistaken() -> str:
        raise AssertionError

    with pytest.raises(AssertionError):
        probes._tried(mistaken)
