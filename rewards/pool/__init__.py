"""Run verifiers in worker processes, and kill a process when its call reaches the deadline."""

from rewards.pool.pool import VerifierPool

__all__ = ["VerifierPool"]
