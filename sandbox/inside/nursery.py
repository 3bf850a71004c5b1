"""The sealed processes of one cell. They are started at first use, and ended together when one of them fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence, Set
from typing import Any

from sandbox.inside.isolation import kernel
from sandbox.inside.isolation.seal import Seal
from sandbox.inside.template import SealedProcess, Template, TemplateLost

_LEAST_OPEN_FILES = 16  # with a lower limit, a sealed process cannot receive a test's descriptors
_CHILDREN_BYTES = 256


class CellNursery:
    """Starts and ends the processes that fork a cell's tests.

    Args:
        seal: the worker's layers.
        children: descriptor of the cell's `/proc/<pid>/task/<pid>/children`, in an outer `/proc`.
    """

    def __init__(self, seal: Seal, children: int) -> None:
        self._seal, self._children = seal, children
        self._possible = seal.private_proc and seal.descendant_kill and seal.close_descriptors
        self._sealed: SealedProcess | None = None
        self._template: Template | None = None
        self._limits: tuple[object, ...] = ()  # limits of the sealed process
        self._stays = False
        self._pays = True  # False for a program that ends these processes, for example by writing a file
        self.numbers: list[bytes] = []  # process numbers in the outer `/proc`, in the kernel's order

    @property
    def empty(self) -> bool:
        return self._sealed is None

    def prepare(self, request: dict[str, Any], program: int) -> None:
        """Start the processes that fork the tests of `request`, and end processes that cannot be used for it."""
        templated = bool(request.get("template"))
        if self._template is not None and templated:
            return  # the template of this program exists already
        self._pays = self._pays or not templated  # if the request needs no template, it is for a new program
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
                self._template = self._sealed.fork_template(program, request["limits"]["wall_s"])
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
        """Start a test; return its process number.

        Raises:
            TemplateLost: the forking process is gone or stopped. The new test may have ended the forking process, and
                may have read and written already.
        """
        if self._template is not None:
            return self._template.fork_test(streams)
        assert self._sealed is not None
        return self._sealed.fork_test(program, streams)

    def alone(self) -> bool:
        """Whether these processes are the cell's only children, and all of them are alive and not stopped.

        A process that a program left behind is now the cell's child, or a descendant of a child. A chain of
        processes, each of which starts the next one and exits, is seen too: nobody has reaped the dead processes, so
        they are still children of the cell.
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
        """Keep the cell and these processes on their current processor; tests may use other processors.

        The cell and these processes never work at the same time. If the kernel moves them between idle processors, a
        test takes a tenth more time, and the processes wake up much more slowly.
        """
        processor = kernel.current_processor()
        if len(self._seal.processors) > 1 and processor >= 0:
            self._stays = True
            self._bind({processor})

    def roam(self) -> None:
        """Let these processes move again, for example if their processor is busy."""
        if self._stays:
            self._stays = False
            self._bind(self._seal.processors)

    def _bind(self, processors: Set[int]) -> None:
        with contextlib.suppress(OSError):  # a process has ended, or this processor is not allowed any more
            os.sched_setaffinity(0, processors)
            for process in (self._sealed, self._template):
                if process is not None:
                    os.sched_setaffinity(process.pid, processors)

    def sound(self) -> bool:
        """Whether the sealed process still answers, so that it can serve the next program."""
        return self._sealed is None or self._sealed.answers()

    def forget_program(self) -> None:
        """Prepare for another program."""
        self._pays = True
        if self._template is not None:
            self._template.close()
            self._template = None
            del self.numbers[1:]

    def give_up(self) -> None:
        """End these processes, and do not start any more of them for this program."""
        self.close()
        self._pays = False

    def close(self) -> None:
        """End these processes."""
        for process in (self._template, self._sealed):
            if process is not None:
                process.close()
        self._template = self._sealed = None
        self.numbers = []


def _fits(limits: dict[str, Any]) -> bool:
    return bool(limits["open_files"] >= _LEAST_OPEN_FILES)


def _kernel_limits(limits: dict[str, Any]) -> tuple[object, ...]:
    """The limits that the kernel enforces for a process. Only the watch enforces `wall_s`."""
    return tuple(value for name, value in limits.items() if name != "wall_s")
