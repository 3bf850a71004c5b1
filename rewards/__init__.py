"""Rule-based verifiers: they decide what the policy learns."""

from rewards.verdict import Status, Verdict
from rewards.verifier import Verifier

__all__ = ["Status", "Verdict", "Verifier"]
