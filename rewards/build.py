"""Build a Verifier from its line in the config."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.adapt import DEFAULT_BOUNDS, PASS_MARK, Adapted
from rewards.named_code import checked, loaded, locate
from rewards.named_files import names_a_file

ENTRY_POINTS = "grpo.verifiers"
# The name of the verifier whose verdict is the reward of the environment (`rewards.verifiers.environment`).
ENVIRONMENT = "environment"
# The name of the verifier whose verdict comes from a reward model (`rewards.verifiers.reward_model`).
REWARD_MODEL = "reward_model"
# Verifiers whose verdicts come from elsewhere, and not from a pool.
ELSEWHERE = frozenset({ENVIRONMENT, REWARD_MODEL})
# For each name in the config: its module and class. The module is imported only if a config names the verifier.
BUILT_IN: Mapping[str, str] = {
    "choice": "rewards.verifiers.choice:Choice",
    "code": "rewards.verifiers.code:CodeVerifier",
    "environment": "rewards.verifiers.environment:Environment",
    "exact": "rewards.verifiers.exact:Exact",
    "format": "rewards.verifiers.format:Format",
    "instructions": "rewards.verifiers.instructions:Instructions",
    "judge": "rewards.verifiers.judge:JudgeVerifier",
    "length": "rewards.verifiers.length:Length",
    "math": "rewards.verifiers.math:Math",
    "math_verify": "rewards.verifiers.math_verify:MathVerify",
    "numeric": "rewards.verifiers.numeric:Numeric",
    "ordered_list": "rewards.verifiers.ordered_list:OrderedList",
    "reasoning_gym": "rewards.verifiers.gym:ReasoningGym",
    "repetition": "rewards.verifiers.repetition:Repetition",
    "reward_model": "rewards.verifiers.reward_model:RewardModel",
}


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """The settings of one verifier in the config.

    Attributes:
        name: name of the verifier in logs.
        use: a built-in name, `package.module:function`, `package.module.function`, `path/to/file.py:function`, or
            the name of an entry point of group `grpo.verifiers`.
        options: keyword arguments of the verifier. Three options have a fixed meaning. `bounds: [least, greatest]`
            limits the accepted score. The other two are for verifiers that are not built in: `pass_mark` is the least
            number that counts as `correct` (by default 1); if `conversational` is true, functions with TRL's signature
            get lists of messages.
        weight: weight of the verifier in the reward.
        gate: True if the verifiers that are not gates count only when this verifier's verdict is `correct`.
        when: accepted values for each named column. The verifier judges only the rows that have an accepted value in
            each of these columns (`rewards.selection`).
    """

    name: str
    use: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    gate: bool = False
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def build_verifier(use: str, options: Mapping[str, Any] | None = None) -> Adapted:
    """Build the verifier that `use` names.

    A class is instantiated with `options`. For a function, `options` become bound keyword arguments.

    >>> verifier = grpo.build_verifier("math")
    >>> verifier("So it is $0.5$.", "1/2", {}).status.value
    'correct'
    >>> tagged = grpo.build_verifier("numeric", {"find": ["answer_tag"]})
    >>> tagged("<answer>4</answer>", "5", {}).reason
    "answer_tag: '4' is not '5'"

    Raises:
        ValueError: the name is unknown (the message has the nearest name), a file or attribute does not exist, the code
            raises an exception while it is loaded (the message has the file and line), the verifier does not take the
            options, or the signature does not show how to call the verifier.
    """
    keywords = dict(options or {})
    bounds = keywords.pop("bounds", DEFAULT_BOUNDS)
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise ValueError(f"verifier {use!r}: bounds must be [least, greatest], got {bounds!r}")
    source: Any = _locate(use)
    adapting: dict[str, Any] = {}
    if use not in BUILT_IN:
        # These two options belong to the adapter, unless the verifier has a parameter of the same name.
        parameters = inspect.signature(source).parameters
        adapting = {
            name: keywords.pop(name) for name in ("pass_mark", "conversational") if name in keywords.keys() - parameters
        }
    function: Any
    try:
        if inspect.isclass(source):
            function = source(**keywords)
        else:
            inspect.signature(source).bind_partial(**keywords)
            function = functools.partial(source, **keywords) if keywords else source
    except TypeError as problem:
        taken = _options_of(source)
        raise ValueError(f"verifier {use!r} does not take the options {keywords}: {problem}{taken}") from problem
    try:
        return Adapted(
            function,
            (bounds[0], bounds[1]),
            adapting.get("pass_mark", PASS_MARK),
            bool(adapting.get("conversational", False)),
        )
    except ValueError as problem:
        raise ValueError(f"verifier {use!r}: {problem}") from problem


def _options_of(source: Callable[..., Any]) -> str:
    """The options that a verifier takes, as the end of a message; empty if its signature does not show them."""
    parameters = inspect.signature(source).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return ""
    if not inspect.isclass(source):
        # A call gives the completion, the reference and the row, and no option sets them.
        by_place = [each for each in named if each.kind is each.POSITIONAL_OR_KEYWORD]
        named = [each for each in named if each not in by_place[:2] and each.name != "prompt"]
    names = ", ".join(each.name for each in named)
    return f"; it takes {names}" if names else "; it takes no options"


def _locate(use: str) -> Callable[..., Any]:
    key = f"verifier {use!r}"
    if use in BUILT_IN:
        return locate(BUILT_IN[use], key)
    if ":" in use or names_a_file(use):
        return locate(use, key)
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if use in entries:
        return checked(loaded(entries[use].load, key), key)
    if "." in use:
        return locate(":".join(use.rsplit(".", 1)), key)
    known = [*BUILT_IN, *entries]
    near = difflib.get_close_matches(use, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no verifier is called {use!r}; {hint}known: {', '.join(sorted(known))}; "
        f"or give 'package.module:function' or 'path/to/file.py:function'"
    )
