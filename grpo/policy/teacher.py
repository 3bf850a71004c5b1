"""The teacher of an on-policy distillation: where it is, and whether it fits the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo import config
from grpo.config.signals.teacher import TeacherConfig
from grpo.policy.stored import context_of, load_tokenizer, local_or_hub, policy_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def teacher_path(teacher: TeacherConfig) -> str:
    """Return the teacher's absolute path if it is a local folder, otherwise its hub name with the revision.

    Raises:
        ValueError: a revision is set for a local folder.
    """
    try:
        return local_or_hub(_as_policy(teacher))
    except ValueError as problem:
        raise ValueError(str(problem).replace("policy.", "algorithm.teacher.")) from problem


def check_teacher(settings: config.TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher that cannot score the policy's tokens; `tokenizer` is the policy's.

    Raises:
        ValueError: there is no teacher at its path, its tokenizer or its vocabulary differs from the policy's, or its
            context is shorter than the longest sequence.
    """
    teacher = settings.algorithm.teacher
    if teacher is None:
        return
    key = f"algorithm.teacher.path={teacher.path}"
    try:
        theirs = load_tokenizer(teacher_path(teacher)).get_vocab()
    except ValueError as problem:
        raise ValueError(str(problem).replace("policy.path", "algorithm.teacher.path")) from problem
    ours = tokenizer.get_vocab()
    if ours != theirs:
        token = min((name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)), key=str)
        place, other = (known.get(token, "no token") for known in (ours, theirs))
        raise ValueError(
            f"{key} has another tokenizer than the policy {settings.policy.path}, so it cannot score the policy's "
            f"tokens: of {len(ours):,} and {len(theirs):,} tokens, {token!r} is {place} of the policy's and {other} of "
            "the teacher's; take a teacher of the policy's family"
        )
    shape = policy_config(_as_policy(teacher))
    if shape is None:
        return
    size = getattr(shape, "vocab_size", None)
    if size is not None and size <= max(ours.values()):
        raise ValueError(
            f"{key} has scores of {size:,} tokens, but the tokenizer has tokens up to {max(ours.values()):,}; take a "
            "teacher whose embeddings have all tokens"
        )
    context, longest = context_of(shape), settings.max_sequence_tokens
    if context is not None and longest > context:
        raise ValueError(
            f"{key} has {context} positions, fewer than the longest sequence of {longest} tokens; lower "
            "rollout.max_prompt_tokens or rollout.max_completion_tokens, or take a teacher with a longer context"
        )


def _as_policy(teacher: TeacherConfig) -> config.PolicyConfig:
    return config.PolicyConfig(path=teacher.path, revision=teacher.revision)
