"""Write a rank's policy as whole tensors under plain names, also if the policy is sharded or has adapters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo.learner.setup import LearnerSetup
from grpo.policy.adapters import adapter_tensors, save_adapter
from grpo.policy.logprobs import DTYPES
from grpo.weights.source import PolicyWeights


class PolicyExport:
    """Writes a rank's policy. All ranks must make the same calls: ZeRO-3 gathers each tensor from all ranks."""

    def __init__(
        self,
        model: PreTrainedModel,
        weights: PolicyWeights,
        tokenizer: PreTrainedTokenizerBase,
        setup: LearnerSetup,
        gathered: Callable[[list[nn.Parameter]], AbstractContextManager[None]],
    ) -> None:
        """Prepare to write `model`; `weights` reads the model's tensors, and `gathered` gathers sharded parameters."""
        self._model, self._weights, self._tokenizer = model, weights, tokenizer
        self._setup, self._gathered = setup, gathered

    def policy(self, folder: str) -> None:
        """Write the policy alone in Hugging Face format, as `transformers` and vLLM load it."""
        # Every rank takes part in the gathering. Only the first rank writes, so only this rank keeps the whole tensors.
        weights = {name: tensor for name, tensor in self._weights if self._setup.rank == 0}
        if self._setup.rank == 0:
            self._model.save_pretrained(folder, state_dict=weights)
            self._tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def adapter(self, folder: Path) -> None:
        """Write the adapters alone, as peft reads them."""
        dtype, tensors = DTYPES[self._setup.dtype], {}
        for name, parameter in adapter_tensors(self._model):
            with self._gathered([parameter]):
                if self._setup.rank == 0:
                    tensors[name] = parameter.detach().to(device="cpu", dtype=dtype, copy=True)
        if self._setup.rank == 0:
            save_adapter(self._model, tensors, self._setup.reference_path, folder)

    def frozen_sum(self) -> float:
        """Return the sum of the magnitudes of all frozen parameters. The sum differs between base policies."""
        total = 0.0
        for parameter in self._model.parameters():
            if not parameter.requires_grad:
                with self._gathered([parameter]):
                    total += float(parameter.detach().abs().sum(dtype=torch.float64))
        return total
