"""The process that forks the worker processes: small, single-threaded, and with the verifiers already built.

A fork of the trainer would copy locks that the trainer's threads may hold at that moment. Starting an interpreter for
each worker costs a hundred times more than a fork. So the pool starts this process once, and this process forks the
workers. If a thread still runs after the verifiers were built, the nursery starts itself again without verifiers, and
every worker builds the verifiers itself.

Run as `python -m rewards.pool.nursery CONTROL_FD PARENT_PID [bare]`, with the pickled set-up on standard input.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import pickle
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from rewards import stage
from rewards.adapt import Adapted, prepare
from rewards.calling import Batch
from rewards.pool import async_worker, wire
from rewards.pool.setup import build_all
from rewards.raised import describe, is_from_here

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
# Looking it up takes a millisecond, which each fork would spend again.
_prctl = ctypes.CDLL(None).prctl
_COMMAND_BYTES = 64
# Seconds between two checks whether a killed worker has ended.
_REAP_S = 0.02


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the parent dies; exit at once if the parent is dead already."""
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(connection: socket.socket, page: stage.SharedPage, verifiers: Mapping[str, Adapted]) -> None:
    """The loop of a worker: read batches, run the calls that are not revoked, and answer each call when it ends."""
    for number in itertools.count(1):
        header = wire.receive_exactly(connection, wire.LENGTH.size)
        if header is None:
            return
        page.write_received(number)
        body = wire.receive_exactly(connection, wire.LENGTH.unpack(header)[0])
        if body is None:
            return
        batch, jobs = pickle.loads(body)
        for identity, name, completions, reference, prompt, lists in jobs:
            verifier = verifiers[name]
            page.write_stage("start")
            hits = verifier.cache_hits
            begun, processor = time.perf_counter(), time.process_time_ns()
            # First announce the call, then look whether it was taken back. The parent looks after it has taken calls
            # back. So at least one of the two sees the other, and the call does not also run in another worker.
            page.write_begun(identity, processor)
            revoked, kept = page.revoked()
            if batch <= revoked and identity != kept:
                connection.sendall(wire.encode_reply(["skipped", batch]))
                break
            if lists is None:
                verdicts = [verifier(completions[0], reference, prompt)]
            else:
                verdicts = verifier.judge(Batch(completions, reference, prompt, lists))
            spent = [time.perf_counter() - begun, (time.process_time_ns() - processor) * 1e-9]
            rest = [*spent, int(verifier.cache_hits > hits)]
            frames = [wire.encode_reply([identity, wire.verdict_fields(verdict), *rest]) for verdict in verdicts]
            connection.sendall(frames[0] if len(frames) == 1 else b"".join(frames))


def become_worker(
    connection: socket.socket,
    page_descriptor: int,
    setup: Mapping[str, Any],
    verifiers: dict[str, Adapted] | None,
    asynchronous: bool,
) -> NoReturn:
    """In the forked child: cap the memory, leave the terminal's process group, serve, exit."""
    code = 0
    try:
        # Make a process group, so that the pool can kill a verifier's children too. Do not make a session: Linux shares
        # processor time between sessions, so a worker in another session could not be held back.
        os.setpgid(0, 0)
        if setup["memory_bytes"] is not None:
            # Set only the soft limit, because a sandbox that a verifier starts sets other limits for its programs.
            most = resource.getrlimit(resource.RLIMIT_AS)[1]
            allowed = setup["memory_bytes"] if most == resource.RLIM_INFINITY else min(setup["memory_bytes"], most)
            resource.setrlimit(resource.RLIMIT_AS, (allowed, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        page = stage.SharedPage(page_descriptor)
        os.close(page_descriptor)
        stage.share(page)
        built = build_all(setup) if verifiers is None else verifiers
        stage.watch_imports(page)
        connection.sendall(wire.encode_reply(["ready", os.getpid()]))
        (async_worker.serve if asynchronous else serve)(connection, page, built)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the pool closed
    except BaseException as problem:
        sys.stderr.write(f"verifier worker: {describe(problem)}\n")
        code = 1
    finally:
        os._exit(code)


def main(arguments: list[str]) -> int:
    """Build the verifiers, then fork or reap a worker at each command until the pool closes."""
    control_descriptor, parent, bare = int(arguments[0]), int(arguments[1]), "bare" in arguments[2:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    # The log gets whole lines, also those of a worker that is killed later.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    control = socket.socket(fileno=control_descriptor)
    setup = pickle.loads(sys.stdin.buffer.read()) if not bare else pickle.loads(_read_saved(int(arguments[3])))
    sys.path[:] = setup["path"]
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    verifiers = None
    if not bare:
        try:
            verifiers = build_all(setup)
        except (Exception, SystemExit) as problem:
            control.send(f"failed {problem if is_from_here(problem) else describe(problem)}".encode()[:4000])
            return 1
        setup["kinds"] = {
            "groups": [name for name, verifier in verifiers.items() if verifier.judges_groups],
            "asynchronous": [name for name, verifier in verifiers.items() if verifier.is_async],
        }
    if len(os.listdir("/proc/self/task")) > 1:
        _start_anew(control, parent, setup)
    try:
        for verifier in (verifiers or {}).values():
            prepare(verifier)
    except (Exception, SystemExit) as problem:
        control.send(f"failed {describe(problem)}".encode()[:4000])
        return 1
    gc.collect()
    gc.freeze()  # collections do not touch the objects shared with the workers, so their pages stay shared
    control.send(f"ready {json.dumps(setup['kinds'])}".encode())
    ending: set[int] = set()
    while True:
        # A killed process that gets no processor time may take a while to end, so this call does not block.
        ending = {child for child in ending if os.waitpid(child, os.WNOHANG)[0] == 0}
        control.settimeout(_REAP_S if ending else None)
        try:
            command, descriptors, _, _ = socket.recv_fds(control, _COMMAND_BYTES, 2)
        except TimeoutError:
            continue
        if not command:
            return 0
        if command.startswith(b"fork"):
            asynchronous = command == b"fork async"
            control.send(str(_fork(control, descriptors, setup, verifiers, asynchronous)).encode())
        else:
            # A worker is reaped only on command, because until then no other process can get its id.
            ending.add(int(command))


def _fork(
    control: socket.socket,
    descriptors: list[int],
    setup: Mapping[str, Any],
    verifiers: dict[str, Adapted] | None,
    asynchronous: bool,
) -> int:
    nursery = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(nursery)
        control.close()
        become_worker(socket.socket(fileno=descriptors[0]), descriptors[1], setup, verifiers, asynchronous)
    for descriptor in descriptors:
        os.close(descriptor)
    return child


def _start_anew(control: socket.socket, parent: int, setup: Mapping[str, Any]) -> NoReturn:
    saved = os.memfd_create("setup")
    os.write(saved, pickle.dumps(setup))
    os.set_inheritable(saved, True)
    control.set_inheritable(True)
    arguments = [str(control.fileno()), str(parent), "bare", str(saved)]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "rewards.pool.nursery", *arguments])


def _read_saved(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as saved:
        saved.seek(0)
        return saved.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
