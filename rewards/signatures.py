"""How a function of the user's wants to be called, read from the names of its parameters.

The project's own signatures are `(completion, reference[, prompt])` for one completion and
`(completions, reference[, prompt])` for a group. Reward functions written for TRL, verl and OpenRLHF are called as
those call them. Names that would be given the wrong values are refused.

Sources: TRL's "Using a custom reward function" (docs/source/grpo_trainer.md), verl's
`default_compute_score` and `BatchRewardManager`, OpenRLHF's examples/scripts/reward_func.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.verdict import Status, Verdict, as_number, scored
from rewards.verifier import PROBLEM_COLUMN

# Names that say what a parameter means, wherever it stands: for each position of our own signature.
_COMPLETION = {"completion", "response", "generation", "prediction", "model_output", "model_response", "solution_str"}
_REFERENCE = {"reference", "ground_truth", "gold", "label", "target", "reference_answer", "gold_answer", "gold_label"}
_ROW = {"prompt", "row", "columns", "extra_info", "metadata", "info", "task"}
_QUESTION = {"question", "problem", "query", "instruction", "prompt_str", "data_source"}
# What other trainers hand to their functions and no run of this project has.
_UNKNOWN = {"completion_ids", "completions_ids", "prompt_ids", "state", "parser", "trainer_state", "environments"}
_MISPLACED = (
    _REFERENCE | _ROW | _QUESTION | _UNKNOWN,
    _COMPLETION | _ROW | _QUESTION | _UNKNOWN,
    _COMPLETION | _REFERENCE | _QUESTION | _UNKNOWN,
)
_MEANT = ("the completion", "the reference answer", "the row's columns, as a mapping")
# Where a function asks for a column under one of these names and the row has none, it means the reference.
_REFERENCE_COLUMNS = {*_REFERENCE, "answer", "solution", "references", "answers", "labels"}
_ADAPT = "{head}:\n    def adapted({ours}):\n        return {name}({arguments})"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a call is about: the completions of one prompt, of which there may be one only.

    Attributes:
        completions: the texts.
        reference: the row's reference answer.
        row: the row's columns.
        own: further columns, which hold a value for each completion, such as the number of its tokens.
    """

    completions: Sequence[str]
    reference: Any
    row: Mapping[str, Any]
    own: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def each(self, value: Any) -> list[Any]:
        """The same value for each completion."""
        return [value] * len(self.completions)


# The positional and the named arguments of one call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Signature:
    """How to call a function.

    Attributes:
        group: it takes all completions of a prompt at once and returns a list.
        arguments: from what the call is about to the arguments.
        returns: from what the function returned for these, to a value or (where `group`) a list of values.
        positional: how many of (completion, reference, columns) are all that it takes, by their places; 0 where it
            takes others. Such a function can be called without `arguments`.
    """

    group: bool
    arguments: Callable[[Batch], Arguments]
    returns: Callable[[Any], Any] = lambda value: value
    positional: int = 0


def read_signature(function: Callable[..., Any], conversational: bool = False) -> Signature:
    """Decide how a function is called.

    Parameters that options have bound are no longer looked at, and those with a default keep it: a row's column is
    never taken for an option.

    Args:
        function: the user's function, or an object that can be called.
        conversational: a function with TRL's signature gets prompts and completions as lists of messages, as it also
            does for a row whose column `prompt` is such a list.

    Raises:
        ValueError: the names of the parameters do not say what they mean, or say something that is not there; the
            message has the lines that adapt the function.
    """
    signature = inspect.signature(function)
    parameters = [one for name, one in signature.parameters.items() if name not in _bound(function)]
    names = {one.name for one in parameters}
    required = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if _is_trl(parameters):
        return _trl(function, parameters, conversational)
    if {"solution_str", "ground_truth"} <= names:
        return _named(function, required, parameters, _VERL, group=False, returns=_verl_score)
    if {"solution_strs", "ground_truths"} <= names:
        return _named(function, required, parameters, _VERL_BATCH, group=True, returns=_verl_scores)
    if {"queries", "prompts", "labels"} <= names:
        return _named(function, required, parameters, _OPENRLHF, group=True, returns=_openrlhf_rewards)
    if "completions" in names:
        return _named(function, required, parameters, _GROUP, group=True)
    return _single(function, signature, parameters)


# One completion: (completion, reference[, prompt])


def _single(
    function: Callable[..., Any], signature: inspect.Signature, parameters: Sequence[inspect.Parameter]
) -> Signature:
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = [one for at, one in enumerate(positional) if at < 2 or one.default is one.empty]
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    takes_columns = not any_number and any(one.kind is one.VAR_KEYWORD for one in parameters)
    for at, one in enumerate(required[:3]):
        if one.name in _MISPLACED[at]:
            raise ValueError(_refusal(function, required, at))
    left = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    too_few = len(positional) < (1 if takes_columns else 2) and not any_number
    if too_few or len(required) > 3 or left:
        raise ValueError(
            f"{_name(function)} must take (completion, reference) or (completion, reference, prompt); its signature is "
            f"{signature}. Give the values of its other parameters in the verifier's options"
        )
    count = 3 if any_number or (len(positional) >= 3 and _wants_row(positional[2])) else min(2, len(positional))
    taken = set(signature.parameters)

    def arguments(batch: Batch) -> Arguments:
        given = (batch.completions[0], batch.reference, batch.row)[:count]
        if not takes_columns:
            return given, {}
        columns = batch.row if count > 1 else {"reference": batch.reference, **batch.row}
        return given, {name: value for name, value in columns.items() if name not in taken}

    return Signature(False, arguments, positional=0 if takes_columns else count)


def _wants_row(third: inspect.Parameter) -> bool:
    # A third parameter that has another default is an option which the config does not set.
    return third.default in (third.empty, None) or third.name in _ROW or isinstance(third.default, Mapping)


def _refusal(function: Callable[..., Any], required: Sequence[inspect.Parameter], at: int) -> str:
    return _ADAPT.format(
        head=f"{_name(function)} takes ({', '.join(one.name for one in required)}), but its parameter {at + 1} gets "
        f"{_MEANT[at]}, which is not what {required[at].name!r} means. Adapt it in two lines, each value in its place",
        ours="completion, reference, prompt",
        name=_name(function),
        arguments=", ".join(_likely_value(one.name) for one in required),
    )


def _likely_value(name: str) -> str:
    if name in _COMPLETION or name in ("text", "output", "answer_text"):
        return "completion"
    if name in _REFERENCE_COLUMNS:
        return "reference"
    return "prompt" if name in _ROW else f"prompt[{name!r}]"


# A group, or another trainer's function: arguments by name


def _question(batch: Batch) -> Any:
    return batch.row.get(PROBLEM_COLUMN, "")


def _extra_info(row: Mapping[str, Any]) -> dict[str, Any]:
    given = row.get("extra_info")
    return dict(given) if isinstance(given, Mapping) else dict(row)


def _truth(reference: Any) -> Any:
    """verl's column `reward_model` holds the reference under this name, beside the style."""
    return reference["ground_truth"] if isinstance(reference, Mapping) and "ground_truth" in reference else reference


_Values = Mapping[str, Callable[[Batch], Any]]
_GROUP: _Values = {
    "completions": lambda batch: list(batch.completions),
    "reference": lambda batch: batch.reference,
    "prompt": lambda batch: {**batch.row, **batch.own},
}
_VERL: _Values = {
    "data_source": lambda batch: batch.row.get("data_source", ""),
    "solution_str": lambda batch: batch.completions[0],
    "ground_truth": lambda batch: _truth(batch.reference),
    "extra_info": lambda batch: _extra_info(batch.row),
}
_VERL_BATCH: _Values = {
    "data_sources": lambda batch: batch.each(_VERL["data_source"](batch)),
    "solution_strs": lambda batch: list(batch.completions),
    "ground_truths": lambda batch: batch.each(_truth(batch.reference)),
    "extra_infos": lambda batch: [_extra_info(batch.row) for _ in batch.completions],
}
_OPENRLHF: _Values = {
    "queries": lambda batch: [f"{_question(batch)}{completion}" for completion in batch.completions],
    "prompts": lambda batch: batch.each(_question(batch)),
    "labels": lambda batch: batch.each(batch.reference),
}


def _named(
    function: Callable[..., Any],
    required: Sequence[inspect.Parameter],
    parameters: Sequence[inspect.Parameter],
    values: _Values,
    *,
    group: bool,
    returns: Callable[[Any], Any] = lambda value: value,
) -> Signature:
    strange = [one.name for one in required if one.name not in values and one.kind is not one.VAR_KEYWORD]
    if strange:
        ours = "completions, reference, prompt" if group else "completion, reference, prompt"
        raise ValueError(
            _ADAPT.format(
                head=f"{_name(function)} takes {', '.join(map(repr, strange))} beside {', '.join(values)}, and nobody "
                "says what that is. Give it in the verifier's options, or adapt the function in two lines",
                ours=ours,
                name=_name(function),
                arguments=ours if values is _GROUP else ", ".join(f"{one.name}=..." for one in required),
            )
        )
    wanted = [one.name for one in parameters if one.name in values]
    takes_columns = values is _GROUP and any(one.kind is one.VAR_KEYWORD for one in parameters)
    bound = _bound(function)

    def arguments(batch: Batch) -> Arguments:
        given = {name: values[name](batch) for name in wanted}
        if takes_columns:
            columns = {**batch.row, **batch.own}
            given = {name: value for name, value in columns.items() if name not in bound} | given
        return (), given

    return Signature(group, arguments, returns)


def _is_trl(parameters: Sequence[inspect.Parameter]) -> bool:
    # TRL hands over more than any function asks for, so its functions have `**kwargs`; ours for groups take `prompt`,
    # which TRL never gives.
    names = {one.name for one in parameters}
    if "queries" in names or "prompt" in names:
        return False
    others = "prompts" in names or any(one.kind is one.VAR_KEYWORD for one in parameters)
    return others and bool(names & {"completions", "completion_ids", "completions_ids"})


def _trl(function: Callable[..., Any], parameters: Sequence[inspect.Parameter], conversational: bool) -> Signature:
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    missing = [one.name for one in named if one.name in _UNKNOWN and one.default is one.empty]
    if missing:
        raise ValueError(
            f"{_name(function)} has the signature of TRL's reward functions and takes {', '.join(missing)}, which a "
            "verifier is not given; write (completions, reference, prompt) instead, where "
            "prompt['completion_tokens'] lists the completions' numbers of tokens"
        )
    names = {one.name for one in named}
    required = {one.name for one in named if one.default is one.empty} - {"prompts", "completions"}
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    bound = _bound(function)

    def arguments(batch: Batch) -> Arguments:
        prompt = batch.row.get("prompt", batch.row.get(PROBLEM_COLUMN, ""))
        talks = conversational or _is_conversation(prompt)
        given = {name: batch.each(value) for name, value in batch.row.items() if name != "prompt"} | {
            name: list(values) for name, values in batch.own.items()
        }
        for name in required - given.keys():
            given[name] = batch.each(_reference_column(name, batch))
        given["prompts"] = batch.each(_messages("user", prompt) if talks else prompt)
        given["completions"] = [_messages("assistant", one) if talks else one for one in batch.completions]
        return (), {name: value for name, value in given.items() if name not in bound and (takes_all or name in names)}

    return Signature(True, arguments, _trl_rewards)


def _reference_column(name: str, batch: Batch) -> Any:
    if name in _REFERENCE_COLUMNS:
        return batch.reference
    raise ValueError(f"the row has no column {name!r}, which the function takes; it has {', '.join(batch.row)}")


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping) and "content" in prompt[0]
    )


def _messages(role: str, content: Any) -> Any:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


# What other trainers' functions return


def _trl_rewards(value: Any) -> Any:
    """TRL leaves a None out of the sum, so it is worth 0 here; it is no claim that the answer is wrong."""
    if not isinstance(value, (list, tuple)):
        return value
    return [
        scored(0.0, "the function returned None: it does not judge this row") if one is None else one for one in value
    ]


def _verl_score(value: Any) -> Any:
    """verl's functions may return `{"score": ..., "acc": ...}`, of which the second says whether it is right."""
    if not isinstance(value, Mapping) or "score" not in value:
        return value
    parts = {str(name): float(one) for name, one in value.items() if name != "score" and isinstance(one, (int, float))}
    if "acc" not in value:
        return value["score"]
    right = as_number(value["acc"]) >= 1
    return Verdict(value["score"], Status.CORRECT if right else Status.WRONG, "", parts)


def _verl_scores(value: Any) -> Any:
    return [_verl_score(one) for one in value] if isinstance(value, (list, tuple)) else value


def _openrlhf_rewards(value: Any) -> Any:
    return value["rewards"] if isinstance(value, Mapping) and "rewards" in value else value


def _bound(function: Callable[..., Any]) -> set[str]:
    """Names of the parameters that a `functools.partial` has set."""
    return set(getattr(function, "keywords", None) or {}) if hasattr(function, "func") else set()


def _name(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)
