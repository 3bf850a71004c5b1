"""The score of a trained reward model, which a run starts in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.verdict import Verdict, error
from rewards.verifier import ReadsNoReference

DEVICES = ("cpu", "gpu")


class RewardModel(ReadsNoReference):
    """Stands for a reward model. A run takes the verdict from the model's process, and never calls this class.

    Args:
        path: folder or hub name of a model for sequence classification with a single label, as `grpo reward` writes.
        normalise: whether the reward is (score - mean) / deviation, with the scale in the model's folder.
        device: `cpu` or `gpu`.
        threads: number of CPU threads of the model's process.
        batch_tokens: largest number of tokens that the model computes at once, with padding.
        deadline_s: longest time for a batch, in seconds.

    Raises:
        ValueError: an option has a value that it cannot have.
    """

    def __init__(
        self,
        path: str,
        normalise: bool = True,
        device: str = "cpu",
        threads: int = 1,
        batch_tokens: int = 16384,
        deadline_s: float = 120.0,
    ) -> None:
        if not isinstance(path, str) or not path:
            raise ValueError(f"reward_model: path needs the folder or hub name of a reward model, got {path!r}")
        if device not in DEVICES:
            raise ValueError(f"reward_model: device must be cpu or gpu, got {device!r}")
        for name, value in (("threads", threads), ("batch_tokens", batch_tokens), ("deadline_s", deadline_s)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"reward_model: {name} needs a number above 0, got {value!r}")
        self.path, self.normalise, self.device = path, bool(normalise), device
        self.threads, self.batch_tokens, self.deadline_s = int(threads), int(batch_tokens), float(deadline_s)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return an `error`: a worker of verifiers holds no model."""
        return error("the verifier `reward_model` works in `grpo train` only; evaluate with another verifier")
