"""Reward functions written for TRL, verl and OpenRLHF: how to recognise their parameters, and which values to pass.

Sources: TRL's "Using a custom reward function" (docs/source/grpo_trainer.md), verl's `default_compute_score` and
`BatchRewardManager`, OpenRLHF's examples/scripts/reward_func.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.calling import Arguments, Batch, Signature, Values, bound_names, by_names, name_of
from rewards.verdict import Status, Verdict, as_number, scored
from rewards.verifier import PROBLEM_COLUMN

# Parameters whose values other trainers pass, but this project does not have.
UNKNOWN = {"completion_ids", "completions_ids", "prompt_ids", "state", "parser", "trainer_state", "environments"}
# A parameter with one of these names gets the reference if the row has no column of the same name.
REFERENCE_COLUMNS = {
    "reference", "ground_truth", "gold", "label", "target", "reference_answer", "gold_answer", "gold_label",
    "answer", "solution", "references", "answers", "labels",
}  # fmt: skip


def _question(batch: Batch) -> Any:
    return batch.row.get(PROBLEM_COLUMN, "")


def _extra_info(row: Mapping[str, Any]) -> dict[str, Any]:
    given = row.get("extra_info")
    return dict(given) if isinstance(given, Mapping) else dict(row)


def _truth(reference: Any) -> Any:
    """The reference. If it is verl's column `reward_model`, return the value of `ground_truth` in that column."""
    return reference["ground_truth"] if isinstance(reference, Mapping) and "ground_truth" in reference else reference


VERL: Values = {
    "data_source": lambda batch: batch.row.get("data_source", ""),
    "solution_str": lambda batch: batch.completions[0],
    "ground_truth": lambda batch: _truth(batch.reference),
    "extra_info": lambda batch: _extra_info(batch.row),
}
VERL_BATCH: Values = {
    "data_sources": lambda batch: batch.each(VERL["data_source"](batch)),
    "solution_strs": lambda batch: list(batch.completions),
    "ground_truths": lambda batch: batch.each(_truth(batch.reference)),
    "extra_infos": lambda batch: [_extra_info(batch.row) for _ in batch.completions],
}
OPENRLHF: Values = {
    "queries": lambda batch: [f"{_question(batch)}{completion}" for completion in batch.completions],
    "prompts": lambda batch: batch.each(_question(batch)),
    "labels": lambda batch: batch.each(batch.reference),
}


def read_other(
    function: Callable[..., Any], parameters: Sequence[inspect.Parameter], conversational: bool
) -> Signature | None:
    """Return how to call a reward function of another trainer; None if no known trainer has such functions.

    Raises:
        ValueError: the function needs a value that a verifier does not get.
    """
    names = {parameter.name for parameter in parameters}
    if _is_trl(parameters):
        return _trl(function, parameters, conversational)
    if {"solution_str", "ground_truth"} <= names:
        return by_names(function, parameters, VERL, group=False, returns=verl_score)
    if {"solution_strs", "ground_truths"} <= names:
        return by_names(function, parameters, VERL_BATCH, group=True, returns=verl_scores)
    if {"queries", "prompts", "labels"} <= names:
        return by_names(function, parameters, OPENRLHF, group=True, returns=openrlhf_rewards)
    return None


def _is_trl(parameters: Sequence[inspect.Parameter]) -> bool:
    # TRL passes more values than a function needs, so functions for TRL take `**kwargs`. Group functions of this
    # project take `prompt`, which TRL never passes.
    names = {parameter.name for parameter in parameters}
    if "queries" in names or "prompt" in names:
        return False
    others = "prompts" in names or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return others and bool(names & {"completions", "completion_ids", "completions_ids"})


def _trl(function: Callable[..., Any], parameters: Sequence[inspect.Parameter], conversational: bool) -> Signature:
    named = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    missing = [
        parameter.name for parameter in named if parameter.name in UNKNOWN and parameter.default is parameter.empty
    ]
    if missing:
        raise ValueError(
            f"{name_of(function)} has the signature of TRL's reward functions and takes {', '.join(missing)}, which a "
            "verifier does not get; write (completions, reference, prompt) instead: prompt['completion_tokens'] lists "
            "the completions' numbers of tokens"
        )
    names = {parameter.name for parameter in named}
    required = {parameter.name for parameter in named if parameter.default is parameter.empty} - {
        "prompts",
        "completions",
    }
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    bound = bound_names(function)

    def arguments(batch: Batch) -> Arguments:
        prompt = batch.row.get("prompt", batch.row.get(PROBLEM_COLUMN, ""))
        as_messages = conversational or _is_conversation(prompt)
        given = {name: batch.each(value) for name, value in batch.row.items() if name != "prompt"} | {
            name: list(values) for name, values in batch.lists.items()
        }
        for name in required - given.keys():
            given[name] = batch.each(_reference_column(name, batch))
        given["prompts"] = batch.each(_messages("user", prompt) if as_messages else prompt)
        given["completions"] = [_messages("assistant", text) if as_messages else text for text in batch.completions]
        return (), {name: value for name, value in given.items() if name not in bound and (takes_all or name in names)}

    return Signature(True, arguments, _trl_rewards)


def _reference_column(name: str, batch: Batch) -> Any:
    if name in REFERENCE_COLUMNS:
        return batch.reference
    raise ValueError(f"the row has no column {name!r}, which the function takes; it has {', '.join(batch.row)}")


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping) and "content" in prompt[0]
    )


def _messages(role: str, content: Any) -> Any:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


# Values that functions of other trainers return


def _trl_rewards(value: Any) -> Any:
    """Turn TRL's rewards into scores.

    TRL leaves a reward of None out of its sum. So None becomes the score 0 with the status `scored`, which does not
    claim that the answer is wrong.
    """
    if not isinstance(value, (list, tuple)):
        return value
    return [
        scored(0.0, "the function returned None: it does not judge this row") if score is None else score
        for score in value
    ]


def verl_score(value: Any) -> Any:
    """verl's functions may return `{"score": ..., "acc": ...}`; `acc` says whether the answer is right."""
    if not isinstance(value, Mapping) or "score" not in value:
        return value
    parts = {
        str(name): float(part) for name, part in value.items() if name != "score" and isinstance(part, (int, float))
    }
    if "acc" not in value:
        return value["score"]
    right = as_number(value["acc"]) >= 1
    return Verdict(value["score"], Status.CORRECT if right else Status.WRONG, "", parts)


def verl_scores(value: Any) -> Any:
    return [verl_score(score) for score in value] if isinstance(value, (list, tuple)) else value


def openrlhf_rewards(value: Any) -> Any:
    return value["rewards"] if isinstance(value, Mapping) and "rewards" in value else value
