from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pool_verifiers
import psutil
import pytest
from pool_verifiers import (
    deaf_hang,
    die,
    die_once,
    eat,
    eventually,
    exits,
    half,
    hang,
    hang_on_request,
    huge,
    modules,
    nan,
    nothing,
    prints_on_the_wire,
    raises,
    record,
    right,
    slow,
    spin,
    with_child,
    word,
)

from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.pool.stats import Tally
from rewards.verdict import Status

WAIT = 30


def only(verifier, completion="a", reference="a", prompt=None, **settings):
    with VerifierPool({"it": verifier}, workers=1, **settings) as pool:
        return pool.submit("it", completion, reference, prompt or {}).result(WAIT)


def test_verdicts_come_back_in_their_own_futures() -> None:
    with VerifierPool({"right": right, "half": half}, workers=2) as pool:
        calls = [("right", str(n % 7), "3", {}) for n in range(500)] + [("half", "", "", {"hard": True})]
        verdicts = [future.result(WAIT) for future in pool.submit_many(calls)]
        assert [v.status is Status.CORRECT for v in verdicts[:500]] == [n % 7 == 3 for n in range(500)]
        assert verdicts[500].score == 0.5
        stats = pool.stats()
    assert stats.verifiers["right"].calls == 500
    assert stats.verifiers["right"].statuses[Status.CORRECT] == sum(n % 7 == 3 for n in range(500))
    assert 0 < stats.verifiers["right"].p50_s <= stats.verifiers["right"].p99_s < 1


def test_what_was_counted_since_the_last_time_is_told_once() -> None:
    with VerifierPool([VerifierSpec("math", "math"), VerifierSpec("other", "exact")], workers=1) as pool:

        def judge(*answers: str) -> None:
            calls = [("math", f"\\boxed{{{answer}}}", "\\pi", {}) for answer in answers]
            concurrent.futures.wait(pool.submit_many(calls), timeout=WAIT)

        judge("\\pi", "x^2+1")
        first = pool.take_recent()
        judge("x^2+1", "x^2+1", "\\pi", "y^3+1")
        second = pool.take_recent()
        assert pool.take_recent() == {}
    assert list(first) == list(second) == ["math"]
    assert first["math"].statuses == {Status.CORRECT: 1, Status.WRONG: 1} and first["math"].hits == 0
    assert second["math"].statuses == {Status.CORRECT: 1, Status.WRONG: 3}
    assert second["math"].stats().cache_hit_rate == 0.75 and len(second["math"].seconds) == 4
    both = Tally()
    both.add(first["math"])
    both.add(second["math"])
    stats = both.stats()
    assert stats.calls == 6 and stats.cache_hit_rate == 0.5
    assert stats.p99_s == max((*first["math"].seconds, *second["math"].seconds))


@pytest.mark.parametrize("verifier", [hang, spin, deaf_hang])
def test_what_hangs_is_killed_at_the_deadline_and_says_where(verifier) -> None:
    begun = time.monotonic()
    verdict = only(verifier, deadline_s=0.4)
    assert verdict.status is Status.TIMEOUT and verdict.score is None
    assert 0.4 <= time.monotonic() - begun < 3
    assert "it: undecided after 0.4 s" in verdict.reason
    if verifier is not deaf_hang:
        assert ("waiting for nothing" if verifier is hang else "spinning") in verdict.reason


def test_the_deadline_is_counted_from_the_start_of_the_work_not_from_queueing() -> None:
    with VerifierPool({"slow": slow}, workers=1, spares=0, deadline_s=0.5) as pool:
        futures = pool.submit_many([("slow", "0.3", "", {})] * 5)
        assert [future.result(WAIT).status for future in futures] == [Status.CORRECT] * 5


def test_a_hanging_call_does_not_hold_up_those_behind_it() -> None:
    with VerifierPool({"it": hang_on_request}, workers=1, deadline_s=3, spares=2) as pool:
        pool.submit("it", "warm", "warm", {}).result(WAIT)
        begun = time.monotonic()
        stuck = pool.submit("it", "hang", "", {})
        others = pool.submit_many([("it", "a", "a", {})] * 200)
        assert all(future.result(WAIT).status is Status.CORRECT for future in others)
        assert time.monotonic() - begun < 2
        assert stuck.result(WAIT).status is Status.TIMEOUT


def test_the_children_of_a_hanging_verifier_die_with_it() -> None:
    mark = f"child-of-{os.getpid()}"
    assert only(with_child, mark, deadline_s=0.5).status is Status.TIMEOUT
    time.sleep(0.2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


def test_memory_is_capped() -> None:
    verdict = only(eat, memory_mib=512)
    assert verdict.status is Status.ERROR and "MemoryError" in verdict.reason
    assert "has 512 MiB of address space (the setting memory_mib)" in verdict.reason


@pytest.mark.parametrize(
    ("verifier", "told"),
    [
        (raises, "LookupError: no such gene"),
        (exits, "SystemExit: 3"),
        (nothing, "NoneType"),
        (nan, "nan"),
        (word, "str 'correct'"),
        (huge, "1000000000"),
        (die, "died 3 times"),
        (prints_on_the_wire, "a reply of"),
    ],
)
def test_what_misbehaves_is_an_error_and_never_a_score(verifier, told) -> None:
    verdict = only(verifier, deadline_s=5)
    assert verdict.status is Status.ERROR and verdict.score is None
    assert told in verdict.reason


def test_async_verifiers_run() -> None:
    assert only(eventually).status is Status.CORRECT


def test_workers_are_light() -> None:
    assert only(modules).score == 0.0


def test_a_call_whose_worker_died_is_replayed(tmp_path) -> None:
    with VerifierPool({"it": die_once}, workers=1) as pool:
        assert pool.submit("it", "", str(tmp_path / "log"), {}).result(WAIT).status is Status.CORRECT
        assert pool.stats().replayed == 1 and pool.stats().died == 1
    assert (tmp_path / "log").read_text().count("call") == 2


def test_killing_workers_mid_batch_loses_nothing_and_doubles_nothing(tmp_path) -> None:
    log = tmp_path / "log"
    with VerifierPool({"it": record}, workers=2, replays=5) as pool:
        done: Counter[int] = Counter()
        futures = pool.submit_many([("it", str(n), str(log), {}) for n in range(1500)])
        for n, future in enumerate(futures):
            future.add_done_callback(lambda _, n=n: done.update([n]))
        kills = 0
        while not all(future.done() for future in futures):
            time.sleep(0.1)
            workers = list(pool._supervisor.calls.workers)
            if kills < 10 and workers:
                os.kill(workers[kills % len(workers)].process.pid, signal.SIGKILL)
                kills += 1
        verdicts = [future.result(WAIT) for future in futures]
    assert kills >= 5
    assert all(verdict.status is Status.CORRECT for verdict in verdicts)
    assert set(done.values()) == {1} and len(done) == 1500
    runs = Counter(log.read_text().split())
    assert len(runs) == 1500
    # Only the call that a killed worker was at may have been run again.
    assert runs.total() - 1500 <= kills


def test_the_nursery_may_die_as_well() -> None:
    with VerifierPool({"it": right}, workers=2) as pool:
        assert pool.submit("it", "a", "a", {}).result(WAIT).status is Status.CORRECT
        begun = time.monotonic()
        pool._supervisor._forks.nursery._process.kill()
        verdicts = [future.result(WAIT) for future in pool.submit_many([("it", "a", "a", {})] * 100)]
        assert all(verdict.status is Status.CORRECT for verdict in verdicts)
        assert time.monotonic() - begun < 3


def family(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def test_closing_leaves_no_process_and_answers_what_is_open() -> None:
    before = {process.pid for process in family(psutil.Process())}
    pool = VerifierPool({"hang": hang, "right": right}, workers=3)
    futures = pool.submit_many([("hang", "", "", {})] * 6)
    time.sleep(0.3)
    pool.close()
    pool.close()
    assert [future.result(1).status for future in futures] == [Status.ERROR] * 6
    assert {process.pid for process in family(psutil.Process())} <= before
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("right", "", "", {})


def test_workers_die_with_a_parent_that_is_killed(tmp_path) -> None:
    program = textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = {[str(Path(pool_verifiers.__file__).parent), str(Path(__file__).parents[3])]!r}
        from pool_verifiers import hang
        from rewards.pool import VerifierPool
        pool = VerifierPool({{"hang": hang}}, workers=2)
        pool.submit_many([("hang", "", "", {{}})] * 2)
        time.sleep(0.5)
        print("up", flush=True)
        time.sleep(1000)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "up\n"
            children = family(psutil.Process(parent.pid))
        finally:
            parent.kill()
    assert len(children) >= 3
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_interrupts_do_not_reach_the_workers() -> None:
    with VerifierPool({"slow": slow}, workers=1) as pool:
        future = pool.submit("slow", "0.4", "", {})
        time.sleep(0.2)
        for worker in pool._supervisor.calls.workers:
            os.kill(worker.process.pid, signal.SIGINT)
        assert future.result(WAIT).status is Status.CORRECT
        assert pool.stats().died == 0


def test_many_threads_may_submit() -> None:
    with VerifierPool({"it": right}, workers=2) as pool:
        counts: list[int] = []

        def work() -> None:
            futures = [pool.submit("it", "a", "a" if n % 2 else "b", {}) for n in range(200)]
            counts.append(sum(future.result(WAIT).status is Status.CORRECT for future in futures))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [100] * 6


def test_a_cancelled_call_is_not_run(tmp_path) -> None:
    with VerifierPool({"slow": slow, "it": record}, workers=1, spares=0) as pool:
        pool.submit_many([("slow", "0.3", "", {})] * 3)
        future = pool.submit("it", "x", str(tmp_path / "log"), {})
        assert future.cancel()
        pool.submit("slow", "0", "", {}).result(WAIT)
    assert not (tmp_path / "log").exists()


def test_large_and_odd_texts_cross_unharmed() -> None:
    text = "\ud800 \x00 \u202e" + "x" * 3_000_000
    with VerifierPool({"it": right}, workers=1) as pool:
        assert pool.submit("it", text, text, {}).result(WAIT).status is Status.CORRECT
        assert pool.submit("it", text, text + "y", {}).result(WAIT).status is Status.WRONG


def test_a_specs_verifier_is_built_in_the_workers_and_its_cache_is_counted() -> None:
    with VerifierPool([VerifierSpec("math", "math")], workers=1) as pool:
        calls = [("math", "\\boxed{\\frac{2}{4}}", "0.5", {})] * 40
        assert all(f.result(WAIT).status is Status.CORRECT for f in pool.submit_many(calls))
        assert pool.stats().verifiers["math"].cache_hit_rate == pytest.approx(39 / 40)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_of_the_supervisors_leaves_nobody_waiting(monkeypatch) -> None:
    with VerifierPool({"hang": hang}, workers=1) as pool:
        futures = pool.submit_many([("hang", "", "", {})] * 3)
        monkeypatch.setattr(pool._supervisor.calls, "watch", lambda: 1 / 0)
        pool._supervisor.wake()
        verdicts = [future.result(WAIT) for future in futures]
        assert all(v.status is Status.ERROR and "ZeroDivisionError" in v.reason for v in verdicts)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            pool.submit("hang", "", "", {})


def test_mistakes_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="did you mean 'numeric'"):
        VerifierPool([VerifierSpec("a", "numerik")], workers=1)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        VerifierPool({"it": right}, workers=0)
    with pytest.raises(ValueError, match="cannot be sent"):
        VerifierPool({"it": lambda completion, reference: True}, workers=1)
    with VerifierPool({"it": right}, workers=1) as pool, pytest.raises(ValueError, match="no verifier 'other'"):
        pool.submit("other", "", "", {})


def test_a_module_with_threads_is_built_in_each_worker(tmp_path, monkeypatch) -> None:
    (tmp_path / "threaded_verifier.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "def check(completion, reference):\n    return threading.active_count() == 2\n"
    )
    spec = VerifierSpec("it", f"{tmp_path}/threaded_verifier.py:check")
    with VerifierPool([spec], workers=2) as pool:
        futures = pool.submit_many([("it", "", "", {})] * 20)
        # A fork of a process with that thread would have lost it.
        assert [future.result(WAIT).status for future in futures] == [Status.CORRECT] * 20


def test_what_verifiers_print_goes_to_the_log_and_not_to_the_terminal(tmp_path, caplog, capfd) -> None:
    (tmp_path / "chatty.py").write_text(
        "import os\nprint('loaded')\n\n\ndef verify(completion, reference):\n"
        "    print('judging', completion)\n    os.system('echo from a program')\n    return True\n"
    )
    caplog.set_level("INFO", logger="rewards")
    spec = VerifierSpec("it", f"{tmp_path}/chatty.py:verify")
    with VerifierPool([spec], workers=1) as pool:
        assert pool.submit("it", "this", "", {}).result(WAIT).status is Status.CORRECT
    wanted = ["loaded", "judging this", "from a program"]
    wanted = [f"a verifier printed: {text}" for text in wanted]
    until = time.monotonic() + WAIT
    while (printed := [text for text in caplog.messages if "printed" in text]) != wanted and time.monotonic() < until:
        time.sleep(0.01)
    assert printed == wanted
    assert capfd.readouterr().out == ""
