"""Verdicts on conversations that come from their worlds: the environment's reward, and failures of the machinery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from grpo.messages import ConversationEnd, Dialogue
from grpo.types import Completion
from rewards.adapt import DEFAULT_BOUNDS, PASS_MARK, as_verdict
from rewards.build import ENVIRONMENT, VerifierSpec
from rewards.verdict import Status, Verdict, error


def has_failed(completion: Completion) -> bool:
    """Return True if the world of the conversation failed, so that no verifier judges it."""
    return completion.dialogue is not None and completion.dialogue.ended is ConversationEnd.FAILED


def failed_verdicts(dialogue: Dialogue, specs: Sequence[VerifierSpec]) -> dict[str, Verdict]:
    """Return the verdict on a conversation whose world failed. `specs` are the verifiers that judge its row."""
    name = next((spec.name for spec in specs if spec.use == ENVIRONMENT), ENVIRONMENT)
    return {name: Verdict(None, Status.TIMEOUT if dialogue.timed_out else Status.ERROR, dialogue.reason)}


def environment_verdict(dialogue: Dialogue | None, spec: VerifierSpec) -> Verdict:
    """Return the environment's reward as a verdict; an `error` if there is no reward.

    The status is that of a number which a user's function returns (`rewards.adapt.Adapted`).
    """
    if dialogue is None:
        return error("the completion is not a conversation, so no environment rewards it; use another verifier")
    reward = dialogue.reward
    if reward.score is None:
        return error("the environment gives no reward; give it a method reward(), or use another verifier")
    low, high = spec.options.get("bounds", DEFAULT_BOUNDS)
    verdict = as_verdict(reward.score, (low, high), spec.options.get("pass_mark", PASS_MARK))
    return replace(verdict, parts=reward.parts)


def transcript(dialogue: Dialogue) -> list[Mapping[str, str]]:
    """Return the messages of a conversation for verifiers."""
    return [
        {"role": message.role, "content": message.content} | ({"name": message.name} if message.name else {})
        for message in dialogue.messages
    ]
