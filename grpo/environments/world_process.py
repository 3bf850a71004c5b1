"""What the process of a conversation does: it opens its world, answers turns, and closes the world."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from grpo.environments import wire
from grpo.environments.contract import World, WorldFailed
from rewards.pool.wire import LENGTH, receive_exactly
from rewards.raised import describe, is_from_here

# Makes the world of a row.
MakeWorld = Callable[[Mapping[str, Any]], World]


def become_world(connection: socket.socket, memory_bytes: int | None, load: Callable[[], MakeWorld]) -> NoReturn:
    """In the forked child: cap the memory, serve the conversation, exit.

    Args:
        connection: socket to the driver.
        memory_bytes: limit of the address space; None for no limit.
        load: function that returns the maker of worlds.
    """
    code = 0
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if memory_bytes is not None:
            # Set only the soft limit, because a sandbox that a tool starts sets other limits for its programs.
            most = resource.getrlimit(resource.RLIMIT_AS)[1]
            allowed = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
            resource.setrlimit(resource.RLIMIT_AS, (allowed, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            serve(connection, load)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The driver abandoned the conversation.
        except BaseException as problem:  # Any exception of the user's code is the driver's to know, also an exit.
            connection.sendall(wire.encode_event(WorldFailed("error", reason_of(problem))))
        sys.stdout.flush()
    except BaseException:
        code = 1
    finally:
        os._exit(code)


def serve(connection: socket.socket, load: Callable[[], MakeWorld]) -> None:
    """Answer the driver's frames, until the driver closes the conversation or its connection.

    Raises:
        BaseException: any exception of the world.
    """
    body = _receive(connection)
    if body is None:
        return
    row = pickle.loads(body)
    world = load()(row)
    connection.sendall(wire.encode_event(world.open(row)))
    while (body := _receive(connection)) is not None:
        request, *fields = json.loads(body)
        if request == wire.CLOSE:
            connection.sendall(wire.encode_event(world.close()))
            return
        connection.sendall(wire.encode_event(world.answer(wire.decode_turn(*fields))))


def reason_of(problem: BaseException) -> str:
    """Return what an exception says, with the user's file and line if the message is not complete without them."""
    return str(problem) if is_from_here(problem) else describe(problem)


def _receive(connection: socket.socket) -> bytes | None:
    header = receive_exactly(connection, LENGTH.size)
    return None if header is None else receive_exactly(connection, LENGTH.unpack(header)[0])
