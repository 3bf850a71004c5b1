"""Convert scored groups to plain data and tensors.

A checkpoint then contains only plain data and tensors, so reading it needs no pickled classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grpo.rollout.dialogue_state import dialogue_from_state, dialogue_state
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards.verdict import Status, Verdict


def group_state(group: Group) -> dict[str, Any]:
    """Return a group as data.

    Of the prompt, only the id is kept, because the prompt's data row may hold values that a checkpoint cannot store.
    """
    state = completions_state([rollout.completion for rollout in group.rollouts])
    return {
        "prompt": group.prompt.id,
        "token_ids": state["token_ids"],
        "logprobs": state["logprobs"],
        "rollouts": [
            {
                **entry,
                "verdicts": {name: _verdict_state(verdict) for name, verdict in rollout.verdicts.items()},
                "reward": None if rollout.reward is None else float(rollout.reward),
            }
            for entry, rollout in zip(state["completions"], group.rollouts, strict=True)
        ],
    }


def completions_state(samples: Sequence[Completion]) -> dict[str, Any]:
    """Return completions as data: tokens and log-probabilities of all, and an entry for each."""
    return {
        "token_ids": torch.tensor([token for sample in samples for token in sample.token_ids], dtype=torch.int64),
        "logprobs": torch.tensor([value for sample in samples for value in sample.logprobs], dtype=torch.float64),
        "completions": [
            {
                "tokens": len(sample.token_ids),
                "text": sample.text,
                "finish_reason": sample.finish_reason,
                "spans": [(span.start, span.stop, span.policy_version) for span in sample.spans],
                **_conversation_state(sample),
            }
            for sample in samples
        ],
    }


def group_from_state(state: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Group:
    """Restore a group from the data of `group_state`.

    Args:
        state: data of the group.
        prompts: prompts of the data, by id.

    Raises:
        ValueError: `prompts` does not contain the group's prompt.
    """
    rollouts = []
    entries = state["rollouts"]
    completions = completions_from_state({**state, "completions": entries})
    for completion, entry in zip(completions, entries, strict=True):
        verdicts = {
            name: Verdict(
                fields["score"], Status(fields["status"]), fields["reason"], fields["parts"], fields.get("spans", ())
            )
            for name, fields in entry["verdicts"].items()
        }
        rollouts.append(Rollout(completion, verdicts, entry["reward"]))
    return Group(known_prompt(state["prompt"], prompts), tuple(rollouts))


def completions_from_state(state: Mapping[str, Any]) -> list[Completion]:
    """Restore completions from the data of `completions_state`."""
    completions, begin = [], 0
    for entry in state["completions"]:
        end = begin + entry["tokens"]
        completions.append(
            Completion(
                tuple(state["token_ids"][begin:end].tolist()),
                tuple(state["logprobs"][begin:end].tolist()),
                entry["text"],
                entry["finish_reason"],
                tuple(VersionSpan(*span) for span in entry["spans"]),
                # Single turns have no such entries, nor have states that were saved before conversations existed.
                tuple((start, stop) for start, stop in entry.get("given", ())),
                dialogue_from_state(entry["dialogue"]) if "dialogue" in entry else None,
            )
        )
        begin = end
    return completions


def known_prompt(name: str, prompts: Mapping[str, Prompt]) -> Prompt:
    """Return the prompt with this id.

    Raises:
        ValueError: the data have no such prompt.
    """
    if name not in prompts:
        raise ValueError(
            f"the checkpoint holds a group of prompt {name}, which the data no longer have; resume with the same data "
            "and length limits, or start a new run folder"
        )
    return prompts[name]


def _conversation_state(completion: Completion) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if completion.given:
        state["given"] = [list(border) for border in completion.given]
    if completion.dialogue is not None:
        state["dialogue"] = dialogue_state(completion.dialogue)
    return state


def _verdict_state(verdict: Verdict) -> dict[str, Any]:
    # A user's verifier may return NumPy values, so convert them to plain data.
    return {
        "score": None if verdict.score is None else float(verdict.score),
        "status": verdict.status.value,
        "reason": str(verdict.reason),
        "parts": {str(name): float(value) for name, value in verdict.parts.items()},
        **({"spans": list(verdict.spans)} if verdict.spans else {}),
    }
