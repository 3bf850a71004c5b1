"""Over-optimisation: the score that the policy is trained on rises, and another score of the same answers falls."""

from __future__ import annotations

from grpo.report.metrics_log import History

PREFIX = "eval/reward/"
# Smallest loss that counts: a share of the range that the curve has had.
_LOST = 0.2


def opposing_scores(history: History, fewest: int) -> tuple[str, str, str] | None:
    """Find a verifier whose held-out score has fallen since its best step, while the score of another has risen.

    Gao, Schulman, Hilton 2022 (arXiv:2210.10760) call the two the proxy and the gold reward. A verifier with weight 0
    is the natural second measure (docs/reward_models.md).

    Args:
        history: the run's metrics.
        fewest: number of evaluations that a curve needs.

    Returns:
        The names of the risen and the fallen curve, and the numbers as text; None if there are no such curves. Of
        several pairs, the one with the largest loss.
    """
    curves = {name: history.curve(name).finite() for name in history.names() if name.startswith(PREFIX)}
    curves = {name: curve for name, curve in curves.items() if len(curve.values) >= fewest}
    pairs = []
    for fallen, curve in curves.items():
        best = max(range(len(curve.values)), key=curve.values.__getitem__)
        spread = max(curve.values) - min(curve.values)
        lost = curve.values[best] - curve.values[-1]
        if not spread or lost < _LOST * spread or best == len(curve.values) - 1:
            continue
        for risen, other in curves.items():
            at_best = dict(zip(other.steps, other.values, strict=True)).get(curve.steps[best])
            if at_best is not None and other.values[-1] > at_best:
                evidence = (
                    f"since step {curve.steps[best]}, {risen} {at_best:.3g} to {other.values[-1]:.3g}, and {fallen} "
                    f"{curve.values[best]:.3g} to {curve.values[-1]:.3g}"
                )
                pairs.append((lost / spread, risen, fallen, evidence))
    if not pairs:
        return None
    _, risen, fallen, evidence = max(pairs)
    return risen, fallen, evidence
