"""Worker processes that verifiers run in, killed at their deadline."""

from rewards.pool.pool import VerifierPool

__all__ = ["VerifierPool"]
