"""Auditing a run: an independent grader judges its stored rollouts again, and the disagreements are reported.

The functions here only compute with records and verdicts. The caller runs the grader in a pool, because the grader
may hang.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.checks.gold_forms import answers_of
from rewards.mathematics.nodes import (
    Apply,
    Bound,
    Matrix,
    Node,
    Number,
    Quantity,
    RatioNode,
    Relation,
    Symbol,
    Text,
    Unreadable,
)
from rewards.mathematics.nodes import Sequence as Items
from rewards.mathematics.reading.latex_text import normalise
from rewards.mathematics.reading.parse_answer import parse
from rewards.verdict import Status, Verdict

# The 97.5th percentile of the normal distribution, for two-sided intervals of 95 %.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class AuditedRollout:
    """One stored rollout of a run: prompt, completion, reference, verifier and verdict."""

    problem: str
    completion: str
    reference: Any
    status: Status
    step: int = 0
    verifier: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A rollout that the two graders judge differently. `kind` is the form of the reference (see `kind_of`)."""

    rollout: AuditedRollout
    kind: str
    theirs: Verdict


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95 % Wilson interval."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share; it is 0 for 0 of 0."""
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.count} of {self.of} ({self.share:.2%}, {self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        graded: number of rollouts on which both graders decided.
        undecided: for each grader, the number of rollouts on which it did not decide (timeouts and errors).
        accepted_only_by_us: rollouts that only the run accepted: candidates for false positives.
        accepted_only_by_them: rollouts that only the other grader accepts: candidates for false negatives.
        false_positives: share of the rollouts accepted by the run that the other grader refuses. The other grader makes
            mistakes too, so this is an estimate, not a bound: read the texts.
        false_negatives: share of the rollouts refused by the run that the other grader accepts.
        by_kind: for each form of the reference, two numbers of disagreements: rollouts accepted only by us, and
            rollouts accepted only by them.
    """

    graded: int
    undecided: Mapping[str, int]
    accepted_only_by_us: tuple[Disagreement, ...]
    accepted_only_by_them: tuple[Disagreement, ...]
    false_positives: Rate
    false_negatives: Rate
    by_kind: Mapping[str, tuple[int, int]]


def wilson(count: int, of: int) -> Rate:
    """Return the share `count / of` with its 95 % interval (Wilson 1927), which is inside [0, 1] even for small counts.

    Raises:
        ValueError: the count is negative or above the total.
    """
    if not 0 <= count <= of:
        raise ValueError(f"0 <= count <= of is needed, got {count} of {of}")
    if of == 0:
        return Rate(0, 0, 0.0, 1.0)
    return Rate(count, of, *wilson_interval(count / of, of, _Z))


def wilson_interval(share: float, observations: float, deviations: float) -> tuple[float, float]:
    """Return Wilson's interval of a share, for `deviations` standard deviations. `observations` may be a fraction."""
    squared = deviations**2 / observations
    centre = (share + squared / 2) / (1 + squared)
    half = math.sqrt(share * (1 - share) * squared + squared**2 / 4) / (1 + squared)
    return max(0.0, centre - half), min(1.0, centre + half)


def audit(rollouts: Sequence[AuditedRollout], theirs: Sequence[Verdict]) -> AuditReport:
    """Compare the run's statuses with the other grader's verdicts, which must be in the order of the rollouts.

    Raises:
        ValueError: the numbers of verdicts and rollouts differ.
    """
    if len(rollouts) != len(theirs):
        raise ValueError(f"one verdict per rollout is needed, got {len(theirs)} for {len(rollouts)}")
    undecided: Counter[str] = Counter()
    ours_only: list[Disagreement] = []
    theirs_only: list[Disagreement] = []
    accepted = refused = 0
    for rollout, verdict in zip(rollouts, theirs, strict=True):
        if rollout.status.failed or verdict.status.failed:
            undecided["run" if rollout.status.failed else "other grader"] += 1
            continue
        ours_right, theirs_right = rollout.status is Status.CORRECT, verdict.status is Status.CORRECT
        accepted += ours_right
        refused += not ours_right
        if ours_right != theirs_right:
            disagreement = Disagreement(rollout, kind_of(rollout.reference), verdict)
            (ours_only if ours_right else theirs_only).append(disagreement)
    kinds = sorted({each.kind for each in (*ours_only, *theirs_only)})
    by_kind = {
        kind: (sum(each.kind == kind for each in ours_only), sum(each.kind == kind for each in theirs_only))
        for kind in kinds
    }
    return AuditReport(
        accepted + refused,
        dict(undecided),
        tuple(ours_only),
        tuple(theirs_only),
        wilson(len(ours_only), accepted),
        wilson(len(theirs_only), refused),
        by_kind,
    )


def kind_of(reference: Any) -> str:
    """The form of a reference answer as one word: integer, rational, expression, equation, tuple, set, matrix, ..."""
    try:
        node: Node = parse(normalise(answers_of(reference)[0]))
    except Unreadable:
        return "unreadable"
    while isinstance(node, Apply) and node.op == "neg":
        node = node.args[0]
    if isinstance(node, Number):
        return "integer" if node.value.denominator == 1 else "rational"
    if isinstance(node, Items):
        return {"": "list", "{}": "set"}.get(node.brackets, "tuple or interval")
    if isinstance(node, Apply) and node.op in ("percent", "degree"):
        return node.op
    names: Mapping[type, str] = {
        Relation: "relation", Matrix: "matrix", Quantity: "quantity", RatioNode: "ratio or time", Text: "text",
        Bound: "bound variable", Symbol: "symbol", Apply: "expression",
    }  # fmt: skip
    return names.get(type(node), "constant")
