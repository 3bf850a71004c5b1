"""The learner's policy model: it computes log-probabilities of packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.algorithm.packing import Microbatch
from grpo.config import Dtype
from grpo.policy.attention import PACKED, PackedLayout, VarlenLayout
from grpo.policy.fused_head import FusedHead
from grpo.policy.head import Entropy, LogprobHead
from grpo.policy.hub import at_revision, name_of
from grpo.policy.sequence_parallel import SequenceGroup

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyLogprobs(nn.Module):
    """A causal language model that returns the log-probabilities of given next tokens instead of logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        group: SequenceGroup | None = None,
        layout: type[PackedLayout | VarlenLayout] = PackedLayout,
        fused: FusedHead | None = None,
    ) -> None:
        """Wrap a model, and replace its output head by a `LogprobHead`.

        Args:
            model: model to change in place.
            group: ranks that share each microbatch's tokens, if there are several. All ranks must make the same calls.
            layout: layout of the sequences for attention.
            fused: fused functions of the output head; None for the operators of PyTorch.

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
            model.set_output_embeddings(LogprobHead(head, fused))
        self._group, self._layout = group, layout

    def forward(self, batch: Microbatch, temperature: float, entropy: Entropy = "none") -> tuple[Tensor, ...]:
        """Return the log-probabilities of the predicted tokens, float32 [T], and, if asked for, the entropies, [T]."""
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
        scored: tuple[Tensor, ...] = head(hidden_TE, tokens.targets_T, temperature, entropy)
        if self._group is None or part is None:
            return scored
        return tuple(self._group.joined(scored, part.chosen_T, len(batch.targets_T)))


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
