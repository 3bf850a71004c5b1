"""The scale of a reward model's scores, which is stored in the model's folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

# File in a reward model's folder with the scale of its scores.
SCALE_FILE = "reward_model.json"


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """The scale of a reward model's scores. The level and the unit of scores mean nothing by themselves.

    Attributes:
        mean: mean of the scores of the training rows' answers.
        deviation: their standard deviation.
        answers: number of these answers.
    """

    mean: float
    deviation: float
    answers: int

    @classmethod
    def of(cls, scores: list[float]) -> ScoreScale:
        """Return the scale of these scores."""
        mean = math.fsum(scores) / len(scores)
        return cls(mean, math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores)), len(scores))

    def write(self, folder: Path) -> None:
        """Write the scale into the folder of a reward model."""
        (folder / SCALE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ScoreScale | None:
        """Read the scale from a folder; None if the folder has none, as models of other trainers.

        Raises:
            ValueError: the file does not hold numbers, or the deviation is not above 0.
        """
        path = folder / SCALE_FILE
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            scale = cls(float(held["mean"]), float(held["deviation"]), int(held["answers"]))
        except (ValueError, KeyError, TypeError) as failure:
            raise ValueError(f"{path} needs the numbers mean, deviation and answers; got {failure!r:.100}") from failure
        if not (math.isfinite(scale.mean) and math.isfinite(scale.deviation) and scale.deviation > 0):
            raise ValueError(
                f"{path} has mean={scale.mean} and deviation={scale.deviation}; a reward model whose scores are all "
                "equal, or not finite, ranks nothing: train it again"
            )
        return scale
