"""Honest programs work, whoever started the sandbox."""

from __future__ import annotations

import pytest
from sandbox_honest import HONEST, Honest
from sandbox_host import WITHOUT_NAMESPACES, Host

from sandbox import ProgramStatus


@pytest.mark.parametrize("program", HONEST, ids=lambda program: program.name)
def test_works(host: Host, program: Honest) -> None:
    stdin = program.stdin.encode("utf-8", "surrogateescape")
    result = host.ask("run", program.source, stdin, program.limits, program.language)
    if result.status is ProgramStatus.NO_COMPILER and "not installed" in result.reason:
        pytest.skip(result.reason)
    if program.processes and host.mode in WITHOUT_NAMESPACES:
        # Refused as documented: without a process namespace nothing would bound and find them.
        assert result.status in (ProgramStatus.NONZERO_EXIT, ProgramStatus.NO_COMPILER, ProgramStatus.OK), result
        assert result.stdout.decode() != program.stdout
        return
    assert result.stdout.decode("utf-8", "replace") == program.stdout, result
    assert result.exit_code == program.exit_code, result
    assert result.status is (ProgramStatus.OK if program.exit_code == 0 else ProgramStatus.NONZERO_EXIT), result


def test_there_are_enough_programs() -> None:
    assert len({program.name for program in HONEST}) == len(HONEST) >= 40
