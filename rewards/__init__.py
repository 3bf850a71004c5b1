"""Rule-based verifiers. Their verdicts determine the rewards, and so what the policy learns.

The import of this package is fast: each verifier or other grader, with its libraries, is imported only at its first
use.
"""

import logging

from rewards.build import VerifierSpec, build_verifier
from rewards.compose import Reward, combine
from rewards.verdict import Status, Verdict, correct, error, scored, unparseable, wrong
from rewards.verifier import Verifier

# If no log is open, records are dropped. Without this handler, Python would print warnings on standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "Reward",
    "Status",
    "Verdict",
    "Verifier",
    "VerifierSpec",
    "build_verifier",
    "combine",
    "correct",
    "error",
    "scored",
    "unparseable",
    "wrong",
]
