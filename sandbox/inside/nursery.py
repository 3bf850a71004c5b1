"""The sealed processes of one cell: made when they are first wanted, thrown away together when anything is amiss."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence, Set
from typing import Any

from sandbox.inside.isolation import kernel
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.template import SealedProcess, Template, TemplateLost

_LEAST_OPEN_FILES = 16  # below, a sealed process could not receive a test's descriptors
_CHILDREN_BYTES = 256


class CellNursery:
    """What a cell's tests are forked from.

    Args:
        seal: the worker's layers.
        children: descriptor of the cell's `/proc/<pid>/task/<pid>/children`, in an outer `/proc`.
    """

    def __init__(self, seal: Seal, children: int) -> None:
        self._seal, self._children = seal, children
        self._possible = seal.private_proc and seal.descendant_kill and seal.close_descriptors
        self._sealed: SealedProcess | None = None
        self._template: Template | None = None
        self._limits: tuple[object, ...] = ()  # those that the sealed process has been given
        self._stays = False
        self._pays = True  # it does not where a program writes files, each of which would end it all
        self.numbers: list[bytes] = []  # process numbers in the outer `/proc`, in the kernel's order

    @property
    def empty(self) -> bool:
        return self._sealed is None

    def prepare(self, request: dict[str, Any], program: int) -> None:
        """Have the processes ready that a test of `request` is forked from, and no others."""
        templated = bool(request.get("template"))
        if self._template is not None and templated:
            return  # the program's next test
        self._pays = self._pays or not templated  # what was given up for a program before
        if not (self._possible and self._pays and request["kind"] == "run" and _fits(request["limits"])):
            self.close()
            return
        limits = _kernel_limits(request["limits"])
        if self._sealed is not None and limits != self._limits:
            self.close()
        try:
            if self._sealed is None:
                self._sealed, self._limits = SealedProcess(self._seal, request), limits
                self._note_newcomer()
            if templated and self._template is None:
                self._template = self._sealed.fork_template(program, request["limits"]["wall_seconds"])
                self._note_newcomer()
        except TemplateLost:
            self.give_up()

    def _note_newcomer(self) -> None:
        newcomers = [number for number in self._read_children() if number not in self.numbers]
        if len(newcomers) != 1:
            raise TemplateLost
        self.numbers += newcomers

    def _read_children(self) -> list[bytes]:
        return os.pread(self._children, _CHILDREN_BYTES, 0).split()

    def fork_test(self, program: int, streams: Sequence[int]) -> int:
        """Start a test; returns its process number.

        Raises:
            TemplateLost: the process that was to fork it is gone or stopped. It may have been ended by the very child
                it had just forked, which may have read and written already.
        """
        if self._template is not None:
            return self._template.fork_test(streams)
        assert self._sealed is not None
        return self._sealed.fork_test(program, streams)

    def alone(self) -> bool:
        """Whether the cell has no process but these, and they are alive and have not been stopped.

        What a program left has become the cell's child, or has an ancestor that has. Nothing is reaped before it has
        been seen, so a chain of processes that each start the next and exit does not slip through: it leaves its dead
        behind.
        """
        if self._read_children() != self.numbers:
            return False
        with contextlib.suppress(ChildProcessError):
            return all(
                os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)[0] == 0
                for process in (self._sealed, self._template)
                if process is not None
            )
        return False

    def stay(self) -> None:
        """Keep the cell and these processes on the processor that they are on; tests may leave it.

        They hand each test to one another and never work at the same time. Moved about, as the kernel does where there
        is an idle processor, they take a tenth more time, and a good deal more to wake up.
        """
        processor = kernel.current_processor()
        if len(self._seal.processors) > 1 and processor >= 0:
            self._stays = True
            self._bind({processor})

    def roam(self) -> None:
        """Let them move again, as where what they stay on is busy."""
        if self._stays:
            self._stays = False
            self._bind(self._seal.processors)

    def _bind(self, processors: Set[int]) -> None:
        with contextlib.suppress(OSError):  # a process has ended, or the machine's owner allows other processors now
            os.sched_setaffinity(0, processors)
            for process in (self._sealed, self._template):
                if process is not None:
                    os.sched_setaffinity(process.pid, processors)

    def sound(self) -> bool:
        """Whether the sealed process, which is to serve the next program too, is as it was before this one."""
        return self._sealed is None or self._sealed.answers()

    def forget_program(self) -> None:
        """Make ready for another program."""
        self._pays = True
        if self._template is not None:
            self._template.close()
            self._template = None
            del self.numbers[1:]

    def give_up(self) -> None:
        """End all of them, and make no more for this program."""
        self.close()
        self._pays = False

    def close(self) -> None:
        """End all of them."""
        for process in (self._template, self._sealed):
            if process is not None:
                process.close()
        self._template = self._sealed = None
        self.numbers = []


def _fits(limits: dict[str, Any]) -> bool:
    return bool(limits["open_files"] >= _LEAST_OPEN_FILES)


def _kernel_limits(limits: dict[str, Any]) -> tuple[object, ...]:
    """Those that are set on a process, unlike those that the watch looks after."""
    return tuple(value for name, value in limits.items() if name != "wall_seconds")
