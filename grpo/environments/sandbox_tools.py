"""What the policy reads about the tools that run in the sandbox. The functions are only descriptions."""

from __future__ import annotations


def python(code: str) -> str:
    """Run a Python program and return what it prints, and the value of its last line. Variables live on in later calls.

    Args:
        code: The program.
    """
    raise NotImplementedError(code)


def bash(command: str) -> str:
    """Run a shell command and return what it prints. Files live on in later calls.

    Args:
        command: The command.
    """
    raise NotImplementedError(command)
