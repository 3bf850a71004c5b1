"""A policy as the learner sees it: a model that gives log-probabilities of packed tokens, and never whole logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.algorithm.packing import Microbatch
from grpo.config import Dtype
from grpo.policy.attention import PACKED, PackedLayout, VarlenLayout
from grpo.policy.hub import at_revision, name_of
from grpo.policy.sequence_parallel import SequenceGroup

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Logits held at a time, in float32: of 440 tokens with a vocabulary of 150,000. The backward pass holds three times as
# much.
LOGIT_BYTES = 1 << 28


class LogprobHead(nn.Linear):
    """A model's output head that takes targets and gives their log-probabilities, with few logits at a time.

    All chunks are one call of one module: at ZeRO-3 a call is a collective, and ranks with other numbers of predicted
    tokens, and so of chunks, must make equally many.
    """

    def __init__(self, head: nn.Linear) -> None:
        """Take over a head's parameters."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias

    def forward(  # type: ignore[override]
        self, hidden_TE: Tensor, targets_T: Tensor, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of targets and entropies, float32 [T], with `LOGIT_BYTES` of logits at a time.

        The backward pass computes each chunk's logits again instead of keeping them.

        Args:
            hidden_TE: what the head reads; there may be none, which takes part in all collectives.
            targets_T: token ids.
            temperature: that logits are divided by.
            entropy_gradient: give entropies a gradient too.
        """
        pieces = []
        chunk = max(1, LOGIT_BYTES // (4 * self.out_features))
        for start in range(0, max(len(hidden_TE), 1), chunk):
            part = slice(start, start + chunk)
            arguments = (hidden_TE[part], targets_T[part], temperature, entropy_gradient)
            # One chunk is all there is to save: recomputing it would cost time and free nothing.
            if len(hidden_TE) <= chunk or not torch.is_grad_enabled():
                pieces.append(self._score(*arguments))
            else:
                pieces.append(checkpoint(self._score, *arguments, use_reentrant=False))
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(
        self, hidden_TE: Tensor, targets_T: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs_TV = log_softmax(super().forward(hidden_TE).float() / temperature, dim=-1)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
        return logprobs_TV.gather(1, targets_T[:, None])[:, 0], entropy_T


class PolicyLogprobs(nn.Module):
    """A causal language model that returns log-probabilities of given next tokens, and nothing as large as logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        group: SequenceGroup | None = None,
        layout: type[PackedLayout | VarlenLayout] = PackedLayout,
    ) -> None:
        """Wrap a model with an output head, which becomes a `LogprobHead`.

        Args:
            model: changed in place.
            group: the ranks that share each microbatch's tokens, where there are several; all must make the same calls.
            layout: how attention lays out sequences.

        Raises:
            ValueError: the head is no linear layer.
        """
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"the learner needs an output head that is one linear layer, and the policy's is {type(head).__name__};"
                " take another policy"
            )
        if not isinstance(head, LogprobHead):
            model.set_output_embeddings(LogprobHead(head))
        self._group, self._layout = group, layout

    def forward(self, batch: Microbatch, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probability of each predicted token, float32 [T] with gradient; entropy, [T], with it if asked for."""
        part = self._group.part(batch) if self._group else None
        own = batch if part is None else part
        layout = self._layout(batch.places, batch.input_ids_N.device, part.positions if part else None)
        hidden_NE = self.model.base_model(
            input_ids=own.input_ids_N[None],
            position_ids=own.position_ids_N[None],
            packed_layout=layout,
            use_cache=False,
        ).last_hidden_state[0]
        # Only what predicts a completion's token meets the output head, the largest matrix of many policies.
        hidden_TE = hidden_NE.index_select(0, own.source_T)
        head = self.model.get_output_embeddings()
        found: tuple[Tensor, Tensor] = head(hidden_TE, own.targets_T, temperature, entropy_gradient)
        if self._group is None or part is None:
            return found
        logprobs_T, entropy_T = self._group.joined(found, part.chosen_T, len(batch.targets_T))
        return logprobs_T, entropy_T


# What some architectures do to logits after the output head, by the key of their config, and its value for "nothing".
_AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


def load_model(path: str, dtype: Dtype, attention: str = PACKED) -> PreTrainedModel:
    """Load a causal language model with packed attention, or another of the same arguments, and without dropout.

    The sampler has no dropout: with it the ratio of a policy to itself would be noise around 1.

    Raises:
        ValueError: its architecture changes the logits after the output head, which `PolicyLogprobs` would leave out.
    """
    model = AutoModelForCausalLM.from_pretrained(
        name_of(path), **at_revision(path), dtype=DTYPES[dtype], attn_implementation=attention
    )
    for key, nothing in _AFTER_THE_HEAD.items():
        value = getattr(model.config, key, nothing)
        if value != nothing:
            raise ValueError(
                f"{path} scales its logits ({key}={value}), which the learner does not do; take another policy"
            )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
