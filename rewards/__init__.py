"""Rule-based verifiers: they decide what the policy learns.

Importing this package is light: each verifier, its libraries and other graders are imported at their first use.
"""

import logging

from rewards.build import VerifierSpec, build_verifier
from rewards.compose import Reward, combine
from rewards.verdict import Status, Verdict, correct, error, scored, unparseable, wrong
from rewards.verifier import Verifier

# Without an open log, records go nowhere. Otherwise Python would show warnings on standard error.
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
