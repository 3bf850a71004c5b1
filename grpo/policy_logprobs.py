"""A policy as the learner sees it: a model that gives log-probabilities of packed tokens, and never whole logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.attention import PACKED, PackedLayout
from grpo.config import Dtype
from grpo.packing import Microbatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Logits held at a time, in float32: of 440 tokens with a vocabulary of 150,000. The backward pass holds three times as
# much.
LOGIT_BYTES = 1 << 28


class PolicyLogprobs(nn.Module):
    """A causal language model that returns log-probabilities of given next tokens, and nothing as large as logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model with an output head."""
        super().__init__()
        self.model = model

    def forward(self, batch: Microbatch, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability of each predicted token, float32 [T] with gradient; entropy, [T], with it if asked for."""
        layout = PackedLayout(batch.places, batch.input_ids_N.device)
        hidden_NE = self.model.base_model(
            input_ids=batch.input_ids_N[None],
            position_ids=batch.position_ids_N[None],
            packed_layout=layout,
            use_cache=False,
        ).last_hidden_state[0]
        # Only what predicts a completion's token meets the output head, the largest matrix of many policies.
        hidden_TE = hidden_NE.index_select(0, batch.source_T)
        head = self.model.get_output_embeddings()
        return chunked_logprobs(head, hidden_TE, batch.targets_T, temperature, entropy_gradient)


def chunked_logprobs(
    head: nn.Module, hidden_TE: Tensor, targets_T: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of targets and entropies, float32 [T], with `LOGIT_BYTES` of logits at a time.

    The backward pass computes each chunk's logits again instead of keeping them.

    Args:
        head: the output head, hidden size to vocabulary.
        hidden_TE: what it reads.
        targets_T: token ids.
        temperature: that logits are divided by.
        entropy_gradient: give entropies a gradient too.
    """
    pieces = []
    # An output head that ZeRO-3 has left an empty shell of keeps its whole shape in ds_shape.
    vocabulary = int(getattr(head.weight, "ds_shape", head.weight.shape)[0])  # type: ignore[index]
    chunk = max(1, LOGIT_BYTES // (4 * vocabulary))
    for start in range(0, len(hidden_TE), chunk):
        part = slice(start, start + chunk)
        arguments = (head, hidden_TE[part], targets_T[part], temperature, entropy_gradient)
        # One chunk is all there is to save: recomputing it would cost time and free nothing.
        if len(hidden_TE) <= chunk or not torch.is_grad_enabled():
            pieces.append(_score(*arguments))
        else:
            pieces.append(checkpoint(_score, *arguments, use_reentrant=False))
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _score(
    head: nn.Module, hidden_TE: Tensor, targets_T: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logprobs_TV = log_softmax(head(hidden_TE).float() / temperature, dim=-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], entropy_T


# What some architectures do to logits after the output head, by the key of their config, and its value for "nothing".
_AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


def load_model(path: str, dtype: Dtype) -> PreTrainedModel:
    """Load a causal language model with packed attention.

    Raises:
        ValueError: its architecture changes the logits after the output head, which `PolicyLogprobs` would leave out.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation=PACKED)
    for key, nothing in _AFTER_THE_HEAD.items():
        value = getattr(model.config, key, nothing)
        if value != nothing:
            raise ValueError(
                f"{path} scales its logits ({key}={value}), which the learner does not do; take another policy"
            )
    return model
