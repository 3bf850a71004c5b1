"""Push the learner's weights to the generators, with a version number, and prove that the weights arrived.

The proof is a probe: the learner and every generator compute the log-probabilities of a few tokens. Both results must
agree. A
checksum is not enough. On a CPU, vLLM repacks linear layers, and provides no hash of the repacked weights. If the
engine keeps a separate copy of a tied output head, neither a hash nor a count of tensors shows that this copy is old.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Scores = list[list[float]]

# Largest mean absolute difference of log-probabilities, if the measured rounding does not ask for more. On a CPU, the
# rounding of float32 is about 1e-6.
TOLERANCES = {"float32": 2e-4, "bfloat16": 0.05}

logger = logging.getLogger(__name__)


class WeightSource(Protocol):
    """The part of the learner that a push needs."""

    @property
    def scores_aside(self) -> bool:
        """Whether the learner can score and export at the same time."""
        ...

    def export_buckets(self, bucket_bytes: int) -> Iterator[Any]:
        """Stream the policy's tensors in buckets.

        With Ray's object store, a bucket holds the tensors' data. With other transports, a bucket holds only the names
        and shapes of the tensors.
        """
        ...

    def tensor_names(self) -> list[str]:
        """Return the names of all tensors; a tied tensor has several names."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], Scores]:
        """Start scoring; return a function that waits for the scores and returns them."""
        ...


class WeightTargets(Protocol):
    """The part of the generators that a push needs."""

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load every bucket on every replica; return the names of the loaded tensors.

        The memory has space for two buckets. So bucket n + 2 is fetched only after bucket n is loaded.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
        """Start scoring on every replica; return a function that waits for the scores and returns them."""
        ...


class WeightMismatch(RuntimeError):
    """A generator does not compute what the learner computes; the message names the wrong tensors."""


@dataclass(frozen=True, slots=True)
class WeightSync:
    """Pushes weights and proves each push.

    Attributes:
        learner: source of the weights.
        generators: targets of the weights.
        bucket_bytes: size of a bucket, in bytes.
        tolerance: maximum mean absolute difference of log-probabilities that passes, in nats.
    """

    learner: WeightSource
    generators: WeightTargets
    bucket_bytes: int
    tolerance: float

    def push(self, policy_version: int, probe: Sequence[Sequence[int]]) -> float:
        """Send the learner's weights to every generator, and check that all generators use them.

        Args:
            policy_version: version number of the weights. The generators label new tokens with this number.
            probe: token sequences for the comparison.

        Returns:
            The largest of the replicas' mean differences, in nats.

        Raises:
            ValueError: no sequence of the probe has two or more tokens.
            WeightMismatch: a replica disagrees with the learner.
        """
        if not any(len(ids) > 1 for ids in probe):
            raise ValueError("a probe needs a sequence of two or more tokens, got none; give longer sequences")
        scored: list[Callable[[], Scores]] = []
        began = time.monotonic()

        def buckets() -> Iterator[Any]:
            if self.learner.scores_aside:
                scored.append(self.learner.score(probe))
            yield from self.learner.export_buckets(self.bucket_bytes)
            if not scored:
                # While the generators load the last bucket, the learner is idle, so let the learner score now.
                scored.append(self.learner.score(probe))

        sent = self.generators.load_weights(buckets(), policy_version)
        # If a lost generator ended the push, the generators have got the weights at their restart.
        differences = self._differences(scored[0] if scored else self.learner.score(probe), probe)
        # A difference of NaN must also raise the error. max() may ignore NaN, so compare each difference.
        if not all(difference <= self.tolerance for difference in differences):
            raise WeightMismatch(self._explain(policy_version, probe, differences, sent))
        logger.info(
            "policy version %d is pushed and proven: %d generators, largest mean difference %.3g, %.2f s",
            policy_version,
            len(differences),
            max(differences),
            time.monotonic() - began,
        )
        return max(differences)

    def compare(self, probe: Sequence[Sequence[int]]) -> list[float]:
        """Return the mean absolute difference of log-probabilities between the learner and each replica, in nats."""
        return self._differences(self.learner.score(probe), probe)

    def _differences(self, learner_scores: Callable[[], Scores], probe: Sequence[Sequence[int]]) -> list[float]:
        generator_scores = self.generators.score(probe)
        expected = learner_scores()
        return [_mean_difference(expected, scores) for scores in generator_scores()]

    def _explain(
        self, policy_version: int, probe: Sequence[Sequence[int]], differences: list[float], sent: list[str]
    ) -> str:
        replicas = ", ".join(
            f"generator {index} by {difference:.3g}"
            for index, difference in enumerate(differences)
            if not difference <= self.tolerance
        )
        message = (
            f"after the push of policy version {policy_version} the log-probabilities of the probe differ from the "
            f"learner's beyond {self.tolerance:.3g}: {replicas}"
        )
        if not _all_numbers(self.learner.score(probe)()):
            return (
                f"{message}. The learner's own log-probabilities are not numbers: the training has diverged; go back "
                "to a checkpoint with a lower learner.learning_rate"
            )
        never_sent = [name for name in self.learner.tensor_names() if name not in sent]
        if never_sent:
            return f"{message}. The push never sent {', '.join(never_sent)}"
        stale = self._stale_tensors(policy_version, probe)
        if stale:
            return f"{message}. These tensors were not in place after the push: {', '.join(stale)}"
        return (
            f"{message}. Sending each block again changed nothing, so all tensors arrived: the engines compute "
            "differently (look at dtype, rope and attention settings of policy.path)"
        )

    def _stale_tensors(self, policy_version: int, probe: Sequence[Sequence[int]]) -> list[str]:
        """Return the names of the tensors that did not arrive in the push.

        The method sends the blocks of the layers again, one at a time. Sending a block that had arrived changes
        nothing. So if a generator's scores change after a block is sent, that block had not arrived.
        """
        stale: list[str] = []
        before = self.generators.score(probe)()
        for bucket in self.learner.export_buckets(1):
            names = self.generators.load_weights([bucket], policy_version)
            after = self.generators.score(probe)()
            if any(_changed(a, b, self.tolerance / 10) for a, b in zip(before, after, strict=True)):
                stale += names
            before = after
        return stale


def _mean_difference(expected: Scores, actual: Scores) -> float:
    pairs = [abs(a - b) for row, other in zip(expected, actual, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(pairs) / len(pairs)


def _changed(before: Scores, after: Scores, tolerance: float) -> bool:
    """Return True if the scores changed by more than `tolerance`, or if only one of `before` and `after` is finite."""
    if not (_all_numbers(before) and _all_numbers(after)):
        return _all_numbers(before) != _all_numbers(after)
    return _mean_difference(before, after) > tolerance


def _all_numbers(scores: Scores) -> bool:
    return all(math.isfinite(score) for row in scores for score in row)
