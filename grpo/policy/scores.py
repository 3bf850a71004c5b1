"""A reward model: a policy whose output head is replaced by a score."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from grpo.algorithm.packing import Microbatch
from grpo.config import Dtype
from grpo.policy.attention import PACKED, PackedLayout, VarlenLayout
from grpo.policy.head import Entropy
from grpo.policy.hub import at_revision, name_of
from grpo.policy.logprobs import DTYPES


class PolicyScores(nn.Module):
    """A sequence-classification model with a single label that scores packed tokens.

    It is called in the same way as `grpo.policy.logprobs.PolicyLogprobs`, and returns scores in place of
    log-probabilities.
    """

    def __init__(self, model: PreTrainedModel, layout: type[PackedLayout | VarlenLayout] = PackedLayout) -> None:
        """Wrap a model of `load_scorer`; `layout` is the layout of the sequences for attention."""
        super().__init__()
        self.model = model
        self._layout = layout

    def forward(self, batch: Microbatch, temperature: float = 1.0, entropy: Entropy = "none") -> tuple[Tensor]:
        """Return the score at each position that predicts a token, float32 [T]: the score of all tokens up to there.

        `temperature` and `entropy` belong to log-probabilities and change nothing.
        """
        hidden_NE = self.model.base_model(
            input_ids=batch.input_ids_N[None],
            position_ids=batch.position_ids_N[None],
            packed_layout=self._layout(batch.places, batch.input_ids_N.device, None),
            use_cache=False,
        ).last_hidden_state[0]
        head: nn.Module = self.model.score  # type: ignore[assignment]
        scores_T1 = head(hidden_NE.index_select(0, batch.source_T))
        return (scores_T1.squeeze(1).float(),)


def load_scorer(path: str, dtype: Dtype, attention: str = PACKED) -> PreTrainedModel:
    """Load a policy with a new score head, or a reward model with its head; without dropout.

    A new head is 0: the first loss is that of a coin, and no seed matters.

    Args:
        path: folder or hub name, with a causal language model or a model for sequence classification.
        dtype: number format of the weights.
        attention: name of the attention.

    Raises:
        ValueError: the model has several labels, or its head is not one linear layer.
    """
    place = {"pretrained_model_name_or_path": name_of(path), **at_revision(path)}
    shape = AutoConfig.from_pretrained(**place)
    has_head = is_classifier(shape)
    if has_head:
        check_labels(shape, path)
    with _quiet():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            **place, dtype=DTYPES[dtype], attn_implementation=attention, num_labels=1
        )
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{path}: {type(model).__name__} has no linear layer `score` as its head; take a policy of another "
            "architecture (Llama, Qwen, Mistral and Gemma have one)"
        )
    if not has_head:
        # With ZeRO-3 the parameter is empty here, and ds_tensor is this rank's part of it.
        getattr(head.weight, "ds_tensor", head.weight.data).zero_()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def is_classifier(shape: object) -> bool:
    """Whether a model's configuration is for sequence classification, as that of a reward model."""
    return any(name.endswith("ForSequenceClassification") for name in getattr(shape, "architectures", None) or ())


def check_labels(shape: object, path: str) -> None:
    """Check that a model gives a single score.

    Raises:
        ValueError: the model has several labels.
    """
    labels = getattr(shape, "num_labels", 1)
    if labels != 1:
        raise ValueError(
            f"{path} has {labels} labels, and a reward model has a single score; take a model with num_labels=1, such "
            "as `grpo reward` trains"
        )


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say in the model's configuration which token is padding, so that transformers can score batches.

    The model of transformers scores the last token that is not padding. If the end token were the padding, it would
    score the token before it. So there is then no padding, and transformers refuses batches of several sequences.
    """
    padding = tokenizer.pad_token_id
    model.config.pad_token_id = None if padding == tokenizer.eos_token_id else padding


def check_scorer(path: str, key: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    """Check that a reward model can score the completions of a policy.

    Args:
        path: folder or hub name of the model.
        key: verifier with the model, for messages.
        tokenizer: the policy's tokenizer.
        longest: tokens of the longest prompt with the longest completion.

    Raises:
        ValueError: there is no model, it has no score head or several labels, its tokenizer differs from the policy's,
            or it cannot read so many tokens.
    """
    try:
        shape = AutoConfig.from_pretrained(name_of(path), **at_revision(path))
        own = AutoTokenizer.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError) as failure:
        raise ValueError(
            f"{key}: path={path!r} is neither a folder with a reward model and its tokenizer nor a readable name on "
            "the hub; `grpo reward` writes such a folder, policy/ in its run folder"
        ) from failure
    if not is_classifier(shape):
        raise ValueError(
            f"{key}: {path} is a {', '.join(shape.architectures or ['model'])} without a score head; train a reward "
            "model from it with `grpo reward` (docs/reward_models.md)"
        )
    check_labels(shape, f"{key}: {path}")
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    if theirs != ours or own.eos_token_id != tokenizer.eos_token_id:
        differing = sum(ours.get(token) != place for token, place in theirs.items())
        raise ValueError(
            f"{key}: {path} was trained with another tokenizer than the policy's: {differing or 'some'} of its "
            f"{len(theirs)} tokens, or its end token, differ. The model reads the policy's tokens, so train it from a "
            "policy with the same tokenizer"
        )
    context = getattr(shape, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ValueError(
            f"{key}: {path} reads at most {context} tokens, and a prompt with its completion may have {longest}; lower "
            "rollout.max_prompt_tokens or rollout.max_completion_tokens, or take another reward model"
        )


@torch.no_grad()
def score_tokens(model: PreTrainedModel, sequences: list[list[int]]) -> list[float]:
    """Return the score of each sequence at its last token. Sequences of different lengths are padded on the right.

    Args:
        model: model of `load_scorer`, with an attention of transformers.
        sequences: token ids.
    """
    longest = max(map(len, sequences))
    device = next(model.parameters()).device
    ids_SN = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask_SN = torch.zeros_like(ids_SN)
    for row, ids in enumerate(sequences):
        ids_SN[row, : len(ids)] = torch.tensor(ids)
        mask_SN[row, : len(ids)] = 1
    # The forward pass of transformers looks for the last token that is not padding by its id, which would be wrong
    # where the end token is the padding token.
    hidden_SNE = model.base_model(
        input_ids=ids_SN.to(device), attention_mask=mask_SN.to(device), use_cache=False
    ).last_hidden_state
    last_S = mask_SN.sum(1).to(device) - 1
    hidden_SE = hidden_SNE[torch.arange(len(sequences), device=device), last_S]
    head: nn.Module = model.score  # type: ignore[assignment]
    scores: list[float] = head(hidden_SE).squeeze(1).float().tolist()
    return scores


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers does not warn that the head is new and that the output head of the policy is not used."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
