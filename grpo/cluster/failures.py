"""Errors that a run survives: a process or a node died or hung, and the run itself is correct.

After these errors only, `grpo.run.recovery` continues from the newest checkpoint.
"""

from __future__ import annotations


class ProcessDied(RuntimeError):
    """A process of the run or its node died; the message names the process and the cause in one line."""


class Stalled(RuntimeError):
    """No progress for `watchdog.stall_s`; the message names the phase, the pending results and the file of stacks."""
