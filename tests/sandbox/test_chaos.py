"""Processes of the sandbox are killed while programs run: results or typed errors come, and nothing stays behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sandbox_host import PROJECT, Host

from sandbox import IsolationLevel, Limits, ProgramStatus, Sandbox, SandboxError, StdinTest

SLOW = "import time; time.sleep(1.0); print('done')"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(level=IsolationLevel.CONFINED) as made:
        yield made


def family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return alive


@pytest.mark.parametrize("generation", [0, 1, 2, 3], ids=["outer", "zygote", "cell", "program"])
def test_a_killed_process_costs_one_retry_at_most(sandbox: Sandbox, generation: int) -> None:
    """Whichever process of the chain dies, the program's result comes or says what killed it."""
    sandbox.run("print(1)")
    outer = sandbox.worker_pids[0]
    before = family(outer)
    killed: list[psutil.Process] = []

    def kill() -> None:
        time.sleep(0.3)
        chain = [psutil.Process(outer)]
        while children := chain[-1].children():
            chain.append(children[-1])
        victim = chain[min(generation, len(chain) - 1)]
        killed.append(victim)
        victim.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    result = sandbox.run(SLOW)
    thread.join()
    if generation == 3:
        assert (result.status, result.exit_code) == (ProgramStatus.SIGNAL, -signal.SIGKILL)
    else:
        assert (result.status, result.stdout) == (ProgramStatus.OK, b"done\n"), result
        assert killed
    assert sandbox.run("print(2)").stdout == b"2\n"
    if generation < 2:
        assert not wait_until_gone(before)
        assert outer not in sandbox.worker_pids


def test_killed_twice_is_a_typed_error(sandbox: Sandbox) -> None:
    stop = threading.Event()

    def keep_killing() -> None:
        while not stop.wait(0.02):
            for pid in sandbox.worker_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=keep_killing)
    thread.start()
    try:
        result = sandbox.run(SLOW)
        graded = sandbox.grade(SLOW, [StdinTest("", "done"), StdinTest("", "done")])
    finally:
        stop.set()
        thread.join()
    assert (result.status, result.exit_code) == (ProgramStatus.SANDBOX_ERROR, None)
    assert [test.status for test in graded] == [ProgramStatus.SANDBOX_ERROR] * 2
    assert sandbox.run("print(3)").stdout == b"3\n"


def test_many_threads_while_workers_die() -> None:
    """Every one of many results is right, although workers are killed all the while."""
    with Sandbox(workers=2) as sandbox:
        stop = threading.Event()

        def kill_now_and_then() -> None:
            while not stop.wait(0.7):
                for pid in sandbox.worker_pids[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            with ThreadPoolExecutor(6) as pool:
                results = list(pool.map(lambda n: sandbox.run(f"print({n} * 2)"), range(150)))
        finally:
            stop.set()
            killer.join()
    wrong = [
        (n, result)
        for n, result in enumerate(results)
        if result.status is not ProgramStatus.SANDBOX_ERROR and result.stdout != b"%d\n" % (2 * n)
    ]
    assert wrong == []
    assert sum(result.status is ProgramStatus.OK for result in results) >= 140


@pytest.mark.parametrize("mode", ["root", "no_namespaces", "root_in_a_container"])
def test_a_killed_supervisor_leaves_nothing(mode: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a host in either mode")
    host = Host(mode, level=IsolationLevel.CONFINED)
    thread = threading.Thread(target=_ask_and_lose, args=(host,))
    thread.start()
    time.sleep(0.5)
    started = family(host.pid)
    assert len(started) >= 4, "the program is not running yet"
    os.kill(host.pid, signal.SIGKILL)
    assert not wait_until_gone(started)
    thread.join()
    assert not host.scratch_directories
    host.remove_temporary()


def _ask_and_lose(host: Host) -> None:
    with contextlib.suppress(EOFError, OSError):
        source = "open('left', 'w').write('x')\nimport time; time.sleep(30)"
        host.ask("run", source, b"", Limits(wall_s=60))


def test_an_abandoned_scratch_directory_is_swept() -> None:
    """Supervisor and outer process killed together: nobody could clean up, so the next start does."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a host without namespaces")
    host = Host("no_namespaces", level=IsolationLevel.CONFINED)
    thread = threading.Thread(target=_ask_and_lose, args=(host,))
    thread.start()
    time.sleep(0.5)
    started = family(host.pid)
    for process in started[:2]:
        process.suspend()
    for process in started[:2]:
        process.kill()
    assert not wait_until_gone(started)
    thread.join()
    assert len(host.scratch_directories) == 1
    second = Host("no_namespaces", temporary=host.temporary, level=IsolationLevel.CONFINED)
    assert second.ask("run", "print(1)").stdout == b"1\n"
    assert len(second.scratch_directories) == 1, "its own and no other"
    temporary = second.scratch_directories[0]
    second.close()
    assert not temporary.exists()


def test_closing_while_a_program_runs() -> None:
    sandbox = Sandbox()
    processes: list[psutil.Process] = []

    def close() -> None:
        time.sleep(0.3)
        processes.extend(family(sandbox.worker_pids[0]))
        sandbox.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run("import time; time.sleep(20)", limits=Limits(wall_s=30))
    thread.join()
    assert not wait_until_gone(processes)
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run("print(1)")
    sandbox.close()


def test_a_sandbox_is_not_used_across_a_fork(sandbox: Sandbox) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.run("print(1)")
        except SandboxError as problem:
            os._exit(0 if "another process" in str(problem) or "made it" in str(problem) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sandbox.run("print(2)").stdout == b"2\n"


@pytest.mark.parametrize(
    "count", [600, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_nothing_grows_over_many_programs(count: int) -> None:
    with Sandbox() as sandbox:
        kinds = ["print(1)", "open('x', 'w').write('y')", "import os; os._exit(3)", "def f(): return f\nf()", "1 / 0"]
        for number in range(100):
            sandbox.run(kinds[number % len(kinds)])
        gc.collect()  # descriptors of earlier tests
        before = _footprint(sandbox)
        for number in range(count):
            result = sandbox.run(kinds[number % len(kinds)])
            assert result.status in (ProgramStatus.OK, ProgramStatus.NONZERO_EXIT)
        deadline = time.monotonic() + 5
        while (after := _footprint(sandbox))[1:] != before[1:] and time.monotonic() < deadline:
            time.sleep(0.05)
    assert after[1:] == before[1:], (before, after)
    assert after[0] - before[0] < 3 << 20, (before, after)  # resident bytes: allocators settle, nothing accrues


def _footprint(sandbox: Sandbox) -> tuple[int, int, int, int]:
    """Resident bytes, descriptors, processes and mounts of the supervisor, the outer process and its zygote."""
    own = psutil.Process()
    outer = psutil.Process(sandbox.worker_pids[0])
    zygote = outer.children()[0]
    resident = sum(process.memory_info().rss for process in (own, outer, zygote))
    descriptors = sum(process.num_fds() for process in (own, outer, zygote))
    mounts = len(Path(f"/proc/{zygote.pid}/mounts").read_text().splitlines())
    return resident, descriptors, len(outer.children(recursive=True)), mounts


def test_the_command_line() -> None:
    def sandbox_command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sandbox", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=PROJECT,
            timeout=60,
        )

    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write("import sys\nprint(input() * 2)\nsys.exit(4)")
        file.flush()
        done = sandbox_command("run", file.name, stdin="ab\n")
    assert (done.stdout, done.returncode) == ("abab\n", 4)
    assert "nonzero exit" in done.stderr
    doctor = sandbox_command("doctor")
    assert doctor.returncode == 0, doctor
    assert "isolation level: " in doctor.stdout and "in force  seccomp" in doctor.stdout
    with tempfile.NamedTemporaryFile("w", suffix=".xyz") as file:
        assert "--language" in sandbox_command("run", file.name).stderr
