"""Worlds that do what a turn says, for tests of their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grpo.environments.contract import Answer, Opening
from grpo.messages import ChatMessage, WorldReward


class ActingWorld:
    """Runs the action that a turn names; the row may name actions for `open` and `close`."""

    def open(self, row: Mapping[str, Any]) -> Opening:
        self.row, self.turns = row, 0
        result = act(row.get("open", ""))
        return result if result is not None else Opening((ChatMessage("user", f"{row.get('question', '')}"),))

    def answer(self, turn: ChatMessage) -> Any:
        self.turns += 1
        result = act(turn.content)
        said = f"{self.turns} {os.getpid()} {[getattr(call, 'arguments', call) for call in turn.calls]}"
        return Answer((ChatMessage("user", said),), reward=0.5) if result is None else result

    def close(self) -> WorldReward:
        result = act(self.row.get("close", ""))
        return result if result is not None else WorldReward(1.0, {"turns": float(self.turns)}, (0.5,) * self.turns)


def act(action: str) -> Any:
    kind, _, rest = action.partition(" ")
    return ACTIONS[kind](rest) if kind in ACTIONS else None


def connection_of_this_process() -> int:
    """The only socket of a conversation's process."""
    return next(int(each) for each in os.listdir("/proc/self/fd") if is_socket(each))


def is_socket(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    except OSError:
        return False


def fail(text: str) -> None:
    raise KeyError(text)


def start_a_child(text: str) -> Answer:
    child = subprocess.Popen(["sleep", "1000"])
    return Answer((ChatMessage("user", f"{child.pid}"),))


def fork_and_die(text: str) -> None:
    """A fork holds the connection of its parent, so the driver sees no end of the stream."""
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(4)


def send(data: bytes) -> None:
    os.write(connection_of_this_process(), data)


def send_later(text: str) -> None:
    threading.Timer(0.05, send, [b"\x02\0\0\0[]"]).start()


def hang_up(text: str) -> None:
    """Close the connection, and live on."""
    os.close(connection_of_this_process())
    time.sleep(1000)


ACTIONS: dict[str, Callable[[str], Any]] = {
    "sleep": lambda text: time.sleep(float(text)),
    "die": lambda text: os.kill(os.getpid(), signal.SIGKILL),
    "die-later": lambda text: threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGKILL]).start(),
    "exit": lambda text: os._exit(int(text)),
    "quit": lambda text: sys.exit(text),
    "raise": fail,
    "print": lambda text: print(text, flush=True) or print(text, file=sys.stderr, flush=True),
    "garbage": lambda text: send(b"\x05\0\0\0hello"),
    "pickle": lambda text: send(b"\x04\0\0\0\x80\x04N."),
    "overlong": lambda text: send(b"\xff\xff\xff\x7f"),
    "unasked": send_later,
    "allocate": lambda text: Answer((ChatMessage("user", f"{len(bytearray(int(text) << 20))}"),)),
    "say": lambda text: Answer((ChatMessage("user", text),)),
    "long": lambda text: Answer((ChatMessage("tool", text[0] * int(text[1:])),)),
    "parts": lambda text: WorldReward(1.0, {"x" * int(text): 1.0}),
    "reward": lambda text: Answer(reward=eval(text)),
    "failures": lambda text: Answer(failures=eval(text)),
    "bare": lambda text: eval(text),
    "score": lambda text: WorldReward(eval(text)),
    "child": start_a_child,
    "hang-up": hang_up,
    "fork-and-die": fork_and_die,
}


def acting(spec: object) -> Callable[[Mapping[str, Any]], ActingWorld]:
    return lambda row: ActingWorld()


def with_a_thread(spec: object) -> Callable[[Mapping[str, Any]], ActingWorld]:
    """The user's code starts a thread when it is loaded."""
    threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
    return lambda row: ActingWorld()


def hanging(spec: object) -> Any:
    time.sleep(1000)


def exiting(spec: object) -> Any:
    os._exit(7)


@dataclass
class Session:
    """A session of no sandbox: it repeats the program."""

    name: str
    settings: Mapping[str, Any]
    text: str = ""

    def run(self, code: str, most_s: float) -> Session:
        self.text = f"{self.name} {dict(self.settings)} {code}"
        return self

    def close(self) -> None:
        pass


def open_session(name: str, settings: Mapping[str, Any]) -> Session:
    return Session(name, settings)
