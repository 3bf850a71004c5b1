"""The learner's policy model: it computes log-probabilities of packed tokens, with few logits at a time."""

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
# Size of the float32 logits in memory at a time, in bytes. With a vocabulary of 150,000, these are the logits of 440
# tokens. The backward pass needs three times this size.
LOGIT_BYTES = 1 << 28


class LogprobHead(nn.Linear):
    """A model's output head that computes the log-probabilities of targets, with few logits at a time.

    A single call of the module computes all chunks. With ZeRO-3, a call is a collective, so all ranks must make the
    same number of calls. The number of chunks may differ between ranks, because it depends on the number of tokens.
    """

    def __init__(self, head: nn.Linear) -> None:
        """Use the parameters of `head`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias

    def forward(  # type: ignore[override]
        self, hidden_TE: Tensor, targets_T: Tensor, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities of targets and entropies, float32 [T], with `LOGIT_BYTES` of logits at a time.

        The logits are not kept. The backward pass computes the logits of each chunk again.

        Args:
            hidden_TE: hidden states, possibly empty. A rank without hidden states still takes part in all collectives.
            targets_T: token ids.
            temperature: divisor of the logits.
            entropy_gradient: True to give the entropies a gradient.
        """
        pieces = []
        chunk = max(1, LOGIT_BYTES // (4 * self.out_features))
        for start in range(0, max(len(hidden_TE), 1), chunk):
            part = slice(start, start + chunk)
            arguments = (hidden_TE[part], targets_T[part], temperature, entropy_gradient)
            # With a single chunk, recomputing would cost time and save no memory.
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
    """A causal language model that returns the log-probabilities of given next tokens instead of logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        group: SequenceGroup | None = None,
        layout: type[PackedLayout | VarlenLayout] = PackedLayout,
    ) -> None:
        """Wrap a model, and replace its output head by a `LogprobHead`.

        Args:
            model: model to change in place.
            group: ranks that share each microbatch's tokens, if there are several. All ranks must make the same calls.
            layout: layout of the sequences for attention.

        Raises:
            ValueError: the head is not a linear layer.
        """
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"the learner needs an output head that is one linear layer, but the policy's head is "
                f"{type(head).__name__}; take another policy"
            )
        if not isinstance(head, LogprobHead):
            model.set_output_embeddings(LogprobHead(head))
        self._group, self._layout = group, layout

    def forward(self, batch: Microbatch, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the predicted tokens, float32 [T] with gradient, and the entropies, [T]."""
        part = self._group.part(batch) if self._group else None
        tokens = batch if part is None else part
        layout = self._layout(batch.places, batch.input_ids_N.device, part.positions if part else None)
        hidden_NE = self.model.base_model(
            input_ids=tokens.input_ids_N[None],
            position_ids=tokens.position_ids_N[None],
            packed_layout=layout,
            use_cache=False,
        ).last_hidden_state[0]
        # In many policies, the output head is the largest matrix. So compute it only where a token is predicted.
        hidden_TE = hidden_NE.index_select(0, tokens.source_T)
        head = self.model.get_output_embeddings()
        scored: tuple[Tensor, Tensor] = head(hidden_TE, tokens.targets_T, temperature, entropy_gradient)
        if self._group is None or part is None:
            return scored
        logprobs_T, entropy_T = self._group.joined(scored, part.chosen_T, len(batch.targets_T))
        return logprobs_T, entropy_T


# Some architectures change the logits after the output head. These are the config keys of such changes, each with the
# value that means "no change".
_AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


def load_model(path: str, dtype: Dtype, attention: str = PACKED) -> PreTrainedModel:
    """Load a causal language model without dropout. `attention` must take the same arguments as packed attention.

    The sampler has no dropout. With dropout in the learner, the ratio of a policy to itself would vary randomly around
    1.

    Raises:
        ValueError: the architecture changes the logits after the output head, which `PolicyLogprobs` does not do.
    """
    model = AutoModelForCausalLM.from_pretrained(
        name_of(path), **at_revision(path), dtype=DTYPES[dtype], attn_implementation=attention
    )
    for key, unchanged in _AFTER_THE_HEAD.items():
        value = getattr(model.config, key, unchanged)
        if value != unchanged:
            raise ValueError(
                f"{path} scales its logits ({key}={value}), which the learner does not do; take another policy"
            )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
