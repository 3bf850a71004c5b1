"""The policy as it leaves a learner rank: whole tensors under plain names, whatever is sharded or adapted inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo.adapters import adapter_tensors, policy_tensors, save_adapter
from grpo.policy_logprobs import DTYPES
from grpo.setups import LearnerSetup


class PolicyExport:
    """Reads a rank's policy. All ranks must make the same calls: at ZeRO-3 each tensor is gathered from all of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        setup: LearnerSetup,
        gathered: Callable[[list[nn.Parameter]], AbstractContextManager[None]],
    ) -> None:
        """Read `model`, whose parameters are whole inside `gathered`."""
        self._model, self._tokenizer, self._setup, self._gathered = model, tokenizer, setup, gathered

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy under its Hugging Face name, whole, in the policy's dtype, on the CPU.

        Adapters are merged into what is yielded, and the learner's own tensors stay as they are.

        Tied tensors come once for each of their names: vLLM on CPU keeps an output head of its own even where the
        configuration ties it. All ranks must iterate together: ZeRO-3 gathers each tensor from all of them.
        """
        dtype = DTYPES[self._setup.dtype]
        for one in policy_tensors(self._model):
            with self._gathered(one.parts):
                yield one.name, one.merged().to(device="cpu", dtype=dtype, copy=True)

    def tensor_names(self) -> list[str]:
        """Every name under which the policy has a parameter, tied ones under each of their names."""
        return [one.name for one in policy_tensors(self._model)]

    def buckets(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        """The policy in pieces of about `bucket_bytes`: uint8 arrays, each the bytes of a safetensors file.

        Rank 0 yields them; the other ranks take part in the gathering and yield nothing. A piece ends only where a
        layer's block does (`self_attn`, `mlp`), as vLLM fuses tensors of one block and wants them together.
        """
        bucket: dict[str, Tensor] = {}
        size = 0
        for name, tensor in self.weights():
            if self._setup.rank == 0:
                if size >= bucket_bytes and block_of(name) != block_of(next(reversed(bucket))):
                    yield _serialise(bucket)
                    bucket, size = {}, 0
                bucket[name] = tensor
                size += tensor.nbytes
        if bucket:
            yield _serialise(bucket)

    def policy(self, folder: str) -> None:
        """Write the policy alone in Hugging Face format, as `transformers` and vLLM load it."""
        # Every rank takes part in the gathering; only the first has room and use for the whole.
        weights = {name: tensor for name, tensor in self.weights() if self._setup.rank == 0}
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
        """Sum of the magnitudes of all frozen parameters: tells one base from another."""
        total = 0.0
        for parameter in self._model.parameters():
            if not parameter.requires_grad:
                with self._gathered([parameter]):
                    total += float(parameter.detach().abs().sum(dtype=torch.float64))
        return total


def block_of(name: str) -> str:
    """The block of a layer that a tensor belongs to: `model.layers.0.self_attn` for its `q_proj.weight`."""
    return name.rsplit(".", 2)[0]


def _serialise(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.frombuffer(safetensors.torch.save(tensors), dtype=np.uint8)
