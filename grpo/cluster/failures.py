"""What a run outlives: the machinery under it died or hung, and nothing is wrong with the run itself.

`grpo.run.recovery` goes on from the newest checkpoint after these, and after no other error.
"""

from __future__ import annotations


class ProcessDied(RuntimeError):
    """A process that the run depends on died, or its node did; the message says in one line which, and how."""


class Stalled(RuntimeError):
    """Nothing moved for `watchdog.stall_s`; the message names the phase, what was waited for, and the file."""
