"""From a line of config to a Verifier."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.adapt import DEFAULT_BOUNDS, Adapted
from rewards.named_code import refuse_standard_file, refuse_standard_function, refuse_standard_module
from rewards.verifier import Verifier

ENTRY_POINTS = "grpo.verifiers"
# Name in the config -> where it is defined; imported only when asked for.
BUILT_IN: Mapping[str, str] = {
    "choice": "rewards.choice:Choice",
    "code": "rewards.code:CodeVerifier",
    "exact": "rewards.exact:Exact",
    "format": "rewards.format:Format",
    "length": "rewards.length:Length",
    "math": "rewards.math:Math",
    "math_verify": "rewards.math_verify_grader:MathVerify",
    "numeric": "rewards.numeric:Numeric",
    "ordered_list": "rewards.ordered_list:OrderedList",
    "reasoning_gym": "rewards.gym:ReasoningGym",
    "repetition": "rewards.repetition:Repetition",
}


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """One verifier as the config names it.

    Attributes:
        name: its name in logs.
        use: a built-in name, `package.module:function`, `package.module.function`, `path/to/file.py:function`, or
            the name of an entry point of group `grpo.verifiers`.
        options: keyword arguments. `bounds: [least, greatest]` is taken out and limits the believed score.
        weight: its share of the reward.
        gate: where it is not `correct`, the others count for nothing.
        when: column -> values; it judges only rows that have one of the values in each column (`rewards.selection`).
    """

    name: str
    use: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    gate: bool = False
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def build_verifier(use: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """Build the verifier that `use` names.

    A class is instantiated with `options`; a function has them bound as keyword arguments.

    Raises:
        ValueError: nothing of that name (the nearest name is told), a file or attribute that does not exist, or
            options that the verifier does not take.
    """
    keywords = dict(options or {})
    bounds = keywords.pop("bounds", DEFAULT_BOUNDS)
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise ValueError(f"verifier {use!r}: bounds must be [least, greatest], got {bounds!r}")
    found: Any = _locate(use)
    function: Any
    try:
        if inspect.isclass(found):
            function = found(**keywords)
        else:
            inspect.signature(found).bind_partial(**keywords)
            function = functools.partial(found, **keywords) if keywords else found
    except TypeError as problem:
        raise ValueError(f"verifier {use!r} does not take the options {keywords}: {problem}") from problem
    return Adapted(function, (bounds[0], bounds[1]))


def _locate(use: str) -> Callable[..., Any]:
    if use in BUILT_IN:
        module, _, attribute = BUILT_IN[use].partition(":")
        return _attribute(module, attribute, use=use)
    module, colon, attribute = use.rpartition(":")
    if colon and module.endswith(".py"):
        return _take(_load_file(Path(module)), attribute, use)
    if colon:
        return _attribute(module, attribute, use=use)
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if use in entries:
        return _callable(entries[use].load(), use)
    if "." in use:
        module, _, attribute = use.rpartition(".")
        return _attribute(module, attribute, use=use)
    known = [*BUILT_IN, *entries]
    near = difflib.get_close_matches(use, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no verifier is called {use!r}; {hint}known: {', '.join(sorted(known))}; "
        f"or give 'package.module:function' or 'path/to/file.py:function'"
    )


def _attribute(module: str, attribute: str, use: str) -> Callable[..., Any]:
    refuse_standard_module(module, f"verifier {use!r}")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as problem:
        raise ValueError(
            f"verifier {use!r}: {problem}; is its package installed, or its folder on PYTHONPATH?"
        ) from problem
    return _take(loaded, attribute, use)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"verifier file {str(path)!r} does not exist (looked from {Path.cwd()})")
    refuse_standard_file(path, f"verifier {str(path)!r}")
    # One name per path, so that objects of the file can be pickled and the file is run once.
    name = "grpo_verifier_file_" + "".join(c if c.isalnum() else "_" for c in str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _take(module: ModuleType, attribute: str, use: str) -> Callable[..., Any]:
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"verifier {use!r}: {module.__name__} has no {attribute!r}{hint}")
    return _callable(found, use)


def _callable(found: object, use: str) -> Callable[..., Any]:
    if not callable(found):
        raise ValueError(f"verifier {use!r} is {type(found).__name__}, which cannot be called")
    refuse_standard_function(found, f"verifier {use!r}")
    return found
