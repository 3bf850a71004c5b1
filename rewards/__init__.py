"""Rule-based verifiers: they decide what the policy learns.

Importing this package is light: each verifier, sympy and the graders it is measured against are imported where
they are used.
"""

import logging

from rewards.build import VerifierSpec, build_verifier
from rewards.compose import Reward, combine
from rewards.verdict import Status, Verdict, correct, error, scored, unparseable, wrong
from rewards.verifier import Verifier

# Without a log that is open, records go nowhere: Python would show warnings on standard error.
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
