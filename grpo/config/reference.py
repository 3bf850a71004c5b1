"""The description of every key of the configuration, from the schema: `grpo config`, and docs/config.md."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.padding import Padding

from grpo.config import FINE_TUNING, FineTuningConfig, TrainConfig
from grpo.config.migrating import foreign_hints
from grpo.terminal import literal

JOBS: Mapping[str, type[TrainConfig] | type[FineTuningConfig]] = {"train": TrainConfig, **FINE_TUNING}
# Stands for the name of a section, for keys that are in no section.
TOP_LEVEL = "top level"
HEADER = """\
# Every key of the configuration

`grpo config --markdown` writes this page from the schema, and a test checks that it is current.

- On the command line, any key may be a dotted override: `rollout.group_size=16`. An item of a list has a number:
  `verifiers.0.weight=0.5`. Where the items have names, the name is as good: `verifiers.answer.weight=0.5`.
- An unknown key is refused, and the message names the nearest key.
- `grpo check CONFIG --full` prints a configuration with all defaults.
- `grpo config rollout` shows a part of this page in the terminal. `grpo config warm` shows every key whose name, or
  else whose description, has this word. `grpo config num_generations` answers a key of another trainer with the key
  here.
"""


@dataclass(frozen=True, slots=True)
class Key:
    """A key.

    Attributes:
        name: dotted name; `[]` stands for the items of a list.
        kind: description of its values.
        default: default value in YAML; None if the key is required.
        text: description of its effect; empty if name and kind are enough.
    """

    name: str
    kind: str
    default: str | None
    text: str


@dataclass(frozen=True, slots=True)
class ReferencePart:
    """A section with its keys, without the keys of inner sections.

    Attributes:
        name: dotted name; `[]` stands for the items of a list.
        text: description of the section.
        keys: keys in the order of the schema.
    """

    name: str
    text: str
    keys: tuple[Key, ...]


def defaults() -> dict[str, str]:
    """Return the default of each key that has one, by the key's name."""
    keys = (key for part in reference() for key in part.keys)
    return {key.name: key.default for key in keys if key.default is not None}


@functools.cache
def reference() -> tuple[ReferencePart, ...]:
    """All sections of all jobs, each once, in the order of the schema."""
    parts: dict[str, ReferencePart] = {}
    jobs: dict[str, list[str]] = {}
    for job, schema in JOBS.items():
        tree = schema.model_json_schema()
        for part in _parts(tree["$defs"], tree, name="", text=""):
            parts.setdefault(part.name, part)
            jobs.setdefault(part.name, []).append(job)
    return tuple(
        part
        if len(jobs[part.name]) == len(JOBS)
        else replace(
            part,
            text=f"{part.text} Only {' and '.join(f'`grpo {job}`' for job in jobs[part.name])} "
            f"{'read' if len(jobs[part.name]) > 1 else 'reads'} this section.",
        )
        for part in parts.values()
        if part.keys
    )


def matching(wanted: str) -> list[ReferencePart]:
    """The sections and keys at or under a dotted name, or else those whose name or description has this word.

    An empty name gives all of them.

    Raises:
        ValueError: no key has this name or word; the message has the nearest names, or the key that replaces another
            trainer's key.
    """
    plain = _plain(wanted)
    at_or_under = _parts_with(lambda key: not plain or f"{_plain(key.name)}.".startswith(f"{plain}."))
    if at_or_under:
        return at_or_under
    # A key of another trainer may also be a part of many words here, so its replacement comes first.
    foreign = foreign_hints(wanted, None)
    parts = [] if foreign else _parts_with(lambda key: plain.lower() in _plain(key.name).lower())
    parts = parts or ([] if foreign else _parts_with(lambda key: plain.lower() in f"{key.text} {key.kind}".lower()))
    if foreign:
        raise ValueError("\n".join(foreign))
    if not parts:
        names = {_plain(key.name) for part in reference() for key in part.keys}
        # Also compare the last word alone, in case the user forgot the section.
        near = [name for name in names if name.split(".")[-1] == plain.split(".")[-1]]
        near += difflib.get_close_matches(plain, names, n=3)
        hint = f"; did you mean {', '.join(dict.fromkeys(near[:3]))}?" if near else ""
        raise ValueError(f"no key of the configuration is called {wanted!r}, and no description has this word{hint}")
    return parts


def _parts_with(wanted: Callable[[Key], bool]) -> list[ReferencePart]:
    parts = (replace(part, keys=tuple(key for key in part.keys if wanted(key))) for part in reference())
    return [part for part in parts if part.keys]


def show(parts: Sequence[ReferencePart], console: Console, descriptions: Callable[[str], Mapping[str, str]]) -> None:
    """Print sections for a person.

    Args:
        parts: sections to print.
        console: console for the output.
        descriptions: function from a key to its choices, name -> description; empty if the key's text is enough.
    """
    for part in parts:
        console.print(literal(f"\n{part.name}", "bold") + literal(f"  {part.text}"))
        for key in part.keys:
            default = "must be given" if key.default is None else f"default {key.default}"
            console.print(literal("  ") + literal(key.name, "cyan") + literal(f": {key.kind}; {default}"))
            if key.text:
                console.print(Padding(literal(key.text), (0, 0, 0, 6)))
            for name, text in descriptions(key.name).items():
                console.print(Padding(literal(f"{name}: {text}"), (0, 0, 0, 8)))


def markdown() -> str:
    """The page docs/config.md."""
    lines = [HEADER]
    for part in reference():
        lines.append(f"## `{part.name}`\n")
        lines.append(f"{part.text}\n")
        lines += ["| key | values | default | what it does |", "|---|---|---|---|"]
        for key in part.keys:
            default = "must be given" if key.default is None else f"`{key.default}`"
            short = key.name.removeprefix(f"{part.name}.")
            lines.append(f"| `{short}` | {_cell(key.kind)} | {_cell(default)} | {_cell(key.text)} |")
        lines.append("")
    return "\n".join(lines)


def _plain(name: str) -> str:
    """Remove list positions: `verifiers[].weight`, `verifiers.0.weight` and `verifiers.weight` are the same key."""
    return ".".join(part for part in name.replace("[]", "").split(".") if not part.isdigit())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").strip()


def _parts(
    definitions: Mapping[str, Any], schema: Mapping[str, Any], *, name: str, text: str
) -> Iterator[ReferencePart]:
    keys: list[Key] = []
    inner: list[ReferencePart] = []
    for field, value in schema["properties"].items():
        dotted = f"{name}.{field}" if name else field
        described = value.get("description", "")
        section, is_list = _section(definitions, value)
        if section is None:
            default = None if field in schema.get("required", ()) else _default(value)
            keys.append(Key(dotted, _kind(definitions, value), default, described))
            continue
        left_out = "The section may be left out." if value.get("default", ...) is None else ""
        about = " ".join(f"{section.get('description', '')} {described} {left_out}".split())
        inner += _parts(definitions, section, name=f"{dotted}[]" if is_list else dotted, text=about)
    if name or keys:
        yield ReferencePart(name or TOP_LEVEL, text or "Keys outside of all sections.", tuple(keys))
    yield from inner


def _section(definitions: Mapping[str, Any], value: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, bool]:
    """The section in a value or in the items of a list, or None; and whether the value is a list."""
    for choice in (value, *value.get("anyOf", ()), *value.get("allOf", ())):
        is_list = choice.get("type") == "array"
        target = (choice.get("items", {}) if is_list else choice).get("$ref")
        if target:
            definition = definitions[target.rsplit("/", 1)[-1]]
            if "properties" in definition:
                return definition, is_list
    return None, False


def _default(value: Mapping[str, Any]) -> str:
    if "default" not in value:
        # The default comes from a factory, so pydantic does not give it. All our factories make empty values.
        return {"array": "[]", "object": "{}"}[value["type"]]
    default = value["default"]
    return default if isinstance(default, str) and default else json.dumps(default)


def _kind(definitions: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """The description of a key's values."""
    if "$ref" in value:
        return _kind(definitions, definitions[value["$ref"].rsplit("/", 1)[-1]])
    if "anyOf" in value:
        return " or ".join(_kind(definitions, choice) for choice in value["anyOf"])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if value.get("format") == "function":
        return "`module:function` or `file.py:function`"
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return "list of " + ", ".join(_kind(definitions, item) for item in value["prefixItems"])
        return f"list of: {_kind(definitions, value.get('items', {}))}"
    if kind == "object":
        of = value.get("additionalProperties", True)
        return "mapping" + ("" if of is True else f" to: {_kind(definitions, of)}")
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    return words.get(str(kind), "anything") + _bounds(value)


def _bounds(value: Mapping[str, Any]) -> str:
    words_by_bound = [
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ]
    bounds = [f"{words} {value[name]:g}" for name, words in words_by_bound if name in value]
    return f" {' and '.join(bounds)}" if bounds else ""
