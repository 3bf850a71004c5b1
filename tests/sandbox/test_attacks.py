"""Every attack is contained, whoever started the sandbox, and succeeds once its layer is taken away.

No attack is against a missing private /proc (without it programs have none), nor against control groups, which are one
more watch over what `Watch` and resource limits hold already (test_control_group.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from sandbox_attacks import ATTACKS, KERNEL, Attack
from sandbox_host import PROJECT, WITHOUT_NAMESPACES, Host

from sandbox import ExecutionResult, IsolationLevel, Layer, ProgramStatus

_NAMES = [attack.name for attack in ATTACKS]


@dataclass(frozen=True)
class Targets:
    """What attacks go for."""

    directory: Path
    victim: int
    port: int
    abstract: str
    segment: int

    def aim(self, source: str) -> str:
        for mark, value in (
            ("@PROJECT@", PROJECT),
            ("@CANARY@", self.directory / "canary"),
            ("@PRIVATE@", self.directory / "private"),
            ("@DIRECTORY@", self.directory),
            ("@FOLDER@", self.directory.name),
            ("@VICTIM@", self.victim),
            ("@PORT@", self.port),
            ("@ABSTRACT@", self.abstract),
            ("@SEGMENT@", self.segment),
            ("@PACKAGES@", Path(os.__file__).parent / "site-packages"),
        ):
            source = source.replace(mark, str(value))
        return source


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    directory = Path(tempfile.mkdtemp(prefix="sandbox-attack-targets-"))
    victim = subprocess.Popen(["sleep", "600"], env={"SECRET": "of the victim"})
    abstract = f"sandbox-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0" + abstract)
        local.listen()
        libc, segment = ctypes.CDLL(None, use_errno=True), 0x5EED0000 + os.getpid() % 0xFFFF
        shared = libc.shmget(segment, 4096, 0o1000 | 0o666)  # IPC_CREAT
        assert shared >= 0, os.strerror(ctypes.get_errno())
        yield Targets(directory, victim.pid, server.getsockname()[1], abstract, segment)
        libc.shmctl(shared, 0, None)  # IPC_RMID
    victim.kill()
    victim.wait()
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def restored(targets: Targets) -> None:
    """Whatever an attack did where its layer was off is undone before the next."""
    for entry in targets.directory.iterdir():
        entry.unlink()
    targets.directory.chmod(0o777)
    for name in ("canary", "victim", "private"):
        (targets.directory / name).write_text("a secret of the host")
        (targets.directory / name).chmod(0o666)
    (targets.directory / "private").chmod(0o600)
    (targets.directory / "program").write_text("#!/bin/sh\necho ESCAPED\n")
    (targets.directory / "program").chmod(0o755)


def _run(host: Host, attack: Attack, targets: Targets, bare: bool = False) -> ExecutionResult:
    limits = attack.loosened if bare and attack.loosened else attack.limits
    result: ExecutionResult = host.ask("run", targets.aim(attack.source), b"", limits)
    return result


@pytest.mark.parametrize("attack", ATTACKS, ids=_NAMES)
def test_contained(host: Host, attack: Attack, targets: Targets) -> None:
    if attack in KERNEL and platform.machine() != "x86_64":
        pytest.skip("the call numbers are those of x86_64")
    if attack.needs_mounts and host.mode in WITHOUT_NAMESPACES:
        pytest.skip("the scratch directory is one that other users cannot enter, not a mount of its own")
    result = _run(host, attack, targets)
    assert b"ESCAPED" not in result.stdout, result
    if host.mode in WITHOUT_NAMESPACES and "fork" in attack.source:
        # Processes are refused here: fork fails, or finds nothing to count.
        assert result.status in attack.statuses | {
            ProgramStatus.NONZERO_EXIT,
            ProgramStatus.OK,
            ProgramStatus.WALL_TIME,
            ProgramStatus.CPU_TIME,
        }
    else:
        assert result.status in attack.statuses, result
    assert (targets.directory / "canary").read_text() == "a secret of the host"
    assert {entry.name for entry in targets.directory.iterdir()} == {"canary", "victim", "private", "program"}


@pytest.mark.parametrize(
    "attack",
    [attack for attack in ATTACKS if attack.without or attack.loosened],
    ids=lambda attack: attack.name,
)
def test_bites_without_its_layer(attack: Attack, targets: Targets, bare_hosts: dict[frozenset[Layer], Host]) -> None:
    if attack in KERNEL and platform.machine() != "x86_64":
        pytest.skip("the call numbers are those of x86_64")
    if attack.without not in bare_hosts:
        bare_hosts[attack.without] = Host("root", level=IsolationLevel.NONE, without=attack.without)
    result = _run(bare_hosts[attack.without], attack, targets, bare=True)
    assert b"ESCAPED" in result.stdout, result


@pytest.fixture(scope="module")
def bare_hosts() -> Iterator[dict[frozenset[Layer], Host]]:
    if os.geteuid() != 0:
        pytest.skip("layers are taken away as root, where each of them stands alone")
    hosts: dict[frozenset[Layer], Host] = {}
    yield hosts
    for host in hosts.values():
        host.close()


def test_a_process_lives_on_where_descendants_are_let_live(
    targets: Targets, bare_hosts: dict[frozenset[Layer], Host]
) -> None:
    attack = next(item for item in ATTACKS if item.name == "outlive_the_program")
    outside = frozenset(
        {Layer.PROCESS_NAMESPACE, Layer.SECCOMP}
    )  # the filter refuses processes where nothing counts them
    for without, lives in ((outside, False), (outside | {Layer.DESCENDANT_KILL}, True)):
        host = bare_hosts[without] = Host("root", level=IsolationLevel.NONE, without=without)
        left_behind = int(_run(host, attack, targets, bare=True).stdout)
        assert psutil.pid_exists(left_behind) == lives
        if lives:
            os.kill(left_behind, signal.SIGKILL)


def test_nothing_left_behind(host: Host, targets: Targets) -> None:
    """After the worst programs no process, mount, descriptor or file remains that was not there before."""
    host.ask("run", "print(1)")  # the worker is up
    before = _footprint(host)
    for name in ("outlive_the_program", "fork_without_end", "fill_disk", "touch_memory", "sleep"):
        attack = next(item for item in ATTACKS if item.name == name)
        _run(host, attack, targets)
    assert host.ask("run", "print(2)").stdout == b"2\n"
    deadline = time.monotonic() + 5
    while not _within(after := _footprint(host), before) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel takes namespaces apart in its own time
    assert _within(after, before), (after, before)


def _within(after: tuple[int, ...], before: tuple[int, ...]) -> bool:
    return all(now <= then for now, then in zip(after, before, strict=True))


def _footprint(host: Host) -> tuple[int, int, int, int]:
    process = psutil.Process(host.pid)
    processes = [process, *process.children(recursive=True)]
    mounts = 0
    for item in processes:
        with contextlib.suppress(OSError):  # it ended meanwhile, or is just ending
            mounts = max(mounts, len(Path(f"/proc/{item.pid}/mounts").read_text().splitlines()))
    scratch = sum(1 for directory in host.scratch_directories for _ in (directory / "run").iterdir())
    return len(processes), process.num_fds(), mounts, scratch


def test_there_are_enough_attacks() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 60
