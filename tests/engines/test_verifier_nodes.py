"""Verifier pools on the nodes of a real Ray: one node here, two in a cluster of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rewards.build import VerifierSpec
from rewards.verdict import Status, Verdict, correct, wrong

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
WAIT = 60


def told(completion: str, reference: str) -> Verdict:
    """Takes the seconds that the completion names, and says which pool it ran in: its worker's parent process."""
    time.sleep(float(completion))
    return (correct if reference == "yes" else wrong)(str(os.getppid()))


def hang(completion: str, reference: str) -> bool:
    time.sleep(600)
    return True


def longest(completions: list[str], reference: str, prompt: dict[str, object]) -> list[bool]:
    """Of a group; the tokens are a column with a value for each completion."""
    assert prompt == {"kind": "x", "completion_tokens": [len(text) for text in completions]}
    return [text == max(completions, key=len) for text in completions]


async def wait(completion: str, reference: str) -> bool:
    await asyncio.sleep(float(completion))
    return True


SPECS = [VerifierSpec("told", f"{__file__}:told"), VerifierSpec("hang", f"{__file__}:hang")]


def test_verdicts_come_back_in_their_own_futures(ray_running: None) -> None:
    from grpo.cluster.verifiers.nodes import NodePool

    with NodePool(SPECS, workers=2, deadline_s=2.0) as pool:
        assert pool.nodes == 1
        futures = [
            future
            for n in range(100)
            for future in pool.submit_many([("told", "0", "yes" if n % 3 else "no", {}), ("told", "0", "yes", {})])
        ]
        verdicts = [future.result(WAIT) for future in futures]
        statuses = [verdict.status is Status.CORRECT for verdict in verdicts]
        assert statuses == [right for n in range(100) for right in (n % 3 != 0, True)]
        tallies = pool.take_recent()
        assert tallies["told"].statuses.total() == 200 and pool.take_recent() == {}
        ((name, busy),) = pool.take_busy().items()
        assert str(name).startswith("verifiers on node ") and busy["verify"][-1][1] <= time.time()
        assert list(pool.take_busy().values()) == [{}]
        begun = time.monotonic()
        (stuck,) = pool.submit_many([("hang", "", "", {})])
        assert stuck.result(WAIT).status is Status.TIMEOUT and time.monotonic() - begun < 20
        with pytest.raises(ValueError, match="it has hang, told"):
            pool.submit_many([("tolled", "", "", {})])
        late = pool.submit_many([("hang", "", "", {})])[0]
    assert late.result(WAIT).status is Status.ERROR and "closed" in late.result().reason
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit_many([("told", "0", "yes", {})])


def test_groups_and_async_verifiers_run_on_the_nodes(ray_running: None) -> None:
    from grpo.cluster.verifiers.nodes import NodePool

    specs = [VerifierSpec("longest", f"{__file__}:longest"), VerifierSpec("wait", f"{__file__}:wait"), SPECS[0]]
    with NodePool(specs, workers=1, deadline_s=10.0) as pool:
        assert [pool.judges_groups(spec.name) for spec in specs] == [True, False, False]
        futures = pool.submit_group("longest", ["a", "aaa", "aa"], "", {"kind": "x"}, {"completion_tokens": [1, 3, 2]})
        assert [future.result(WAIT).status is Status.CORRECT for future in futures] == [False, True, False]
        with pytest.raises(ValueError, match="'told' judges completions one by one"):
            pool.submit_group("told", ["a"], "", {})
        begun = time.monotonic()
        waiting = pool.submit_many([("wait", "0.5", "", {})] * 32)
        assert all(future.result(WAIT).status is Status.CORRECT for future in waiting)
        assert time.monotonic() - begun < 8, "one after the other they take 16 s"


def test_the_calls_of_a_pool_that_dies_are_given_to_the_one_that_follows_it(ray_running: None) -> None:
    import ray

    from grpo.cluster.verifiers.nodes import NodePool

    with NodePool(SPECS, workers=2, deadline_s=20.0) as pool:
        first = pool.submit_many([("told", "0", "yes", {})])[0].result(WAIT).reason
        futures = [pool.submit_many([("told", "0.2", "yes" if n % 2 else "no", {})])[0] for n in range(20)]
        time.sleep(0.5)
        ray.kill(pool._nodes[0].actor)
        verdicts = [future.result(WAIT) for future in futures]
        assert [verdict.status for verdict in verdicts] == [Status.WRONG, Status.CORRECT] * 10
        assert len({verdict.reason for verdict in verdicts} - {first}) == 1
        assert pool.nodes == 1


def test_where_no_pool_is_left_calls_come_to_an_error(ray_running: None) -> None:
    import ray

    from grpo.cluster.verifiers.nodes import NodePool

    with NodePool(SPECS, workers=1, deadline_s=20.0, replays=0) as pool:
        waiting = pool.submit_many([("told", "5", "yes", {})])[0]
        ray.kill(pool._nodes[0].actor)
        assert waiting.result(WAIT).status is Status.ERROR and "died" in waiting.result().reason
        after = pool.submit_many([("told", "0", "yes", {})])[0].result(WAIT)
        assert after.status is Status.ERROR and "all nodes" in after.reason


def test_a_verifier_that_cannot_be_built_is_told(ray_running: None) -> None:
    from grpo.cluster.verifiers.nodes import NodePool

    with pytest.raises(ValueError, match="did you mean 'numeric'"):
        NodePool([VerifierSpec("a", "numerc")], workers=1, deadline_s=1.0)


TWO_NODES = """
import os, sys, time
os.environ.setdefault("RAY_worker_niceness", "0")
import ray
from ray.cluster_utils import Cluster
sys.path[:0] = [{root!r}]
from grpo.cluster.verifiers.nodes import NodePool
from rewards.build import VerifierSpec
from rewards.verdict import Status


def share_and_take_over(cluster, second):
    with NodePool([VerifierSpec("told", {use!r})], workers=1, deadline_s=20.0) as pool:
        assert pool.nodes == 2, pool.nodes

        def submit(count, seconds):
            return [pool.submit_many([("told", seconds, "yes" if n % 2 else "no", {{}})])[0] for n in range(count)]

        def check(futures):
            verdicts = [future.result(120) for future in futures]
            assert [v.status for v in verdicts] == [Status.WRONG, Status.CORRECT] * (len(futures) // 2), verdicts
            return [v.reason for v in verdicts]

        where = check(submit(40, "0.05"))
        assert len(set(where)) == 2 and min(map(where.count, set(where))) >= 10, where
        assert pool.take_recent()["told"].statuses.total() == 40
        futures = submit(40, "0.3")
        time.sleep(1.0)
        cluster.remove_node(second, allow_graceful=False)
        after = check(futures)
        assert set(after) <= set(where), (after, where)
        check(submit(4, "0"))
        assert pool.nodes == 1, pool.nodes


cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 2, "include_dashboard": False}})
try:
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    cluster.wait_for_nodes()
    share_and_take_over(cluster, second)
    print("both nodes worked, and one was enough")
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_two_nodes_share_the_calls_and_one_takes_over_the_others() -> None:
    program = TWO_NODES.format(root=str(ROOT), use=f"{__file__}:told")
    # A folder of its own, with a short name for the sockets in it: from Ray's usual one, other programs on this
    # machine would take the address of this cluster for theirs.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "one was enough" in done.stdout


def test_nothing_is_left_running(ray_running: None) -> None:
    import psutil

    from grpo.cluster.verifiers.nodes import NodePool

    with NodePool(SPECS, workers=1, deadline_s=20.0) as pool:
        nursery = int(pool.submit_many([("told", "0", "yes", {})])[0].result(WAIT).reason)
        concurrent.futures.wait(pool.submit_many([("told", "30", "yes", {})]), timeout=1.0)
        assert psutil.pid_exists(nursery)
    for _ in range(100):
        if not psutil.pid_exists(nursery) or psutil.Process(nursery).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the verifiers outlived their pool")
