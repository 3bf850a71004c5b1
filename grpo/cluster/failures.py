"""Errors that a run survives: a process or a node died or hung, but the run itself is correct.

`grpo.run.recovery` continues from the newest checkpoint only after these errors.
"""

from __future__ import annotations


class ProcessDied(RuntimeError):
    """A process of the run or its node died; the message names the process and the cause in one line."""


class Stalled(RuntimeError):
    """No progress for `watchdog.stall_s`; the message names the phase, the pending results and the file with stacks."""
