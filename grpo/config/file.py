"""Read a configuration: YAML, dotted overrides, and a report of all problems at once."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from grpo.config import FINE_TUNING, DpoConfig, FineTuningConfig, RewardConfig, SftConfig, TrainConfig
from grpo.config.evaluation import EvalConfig, TaskConfig, TaskVerifierConfig
from grpo.config.exposure import exposed_paths, local_paths
from grpo.config.launch import FORMS
from grpo.config.migrating import foreign_hints, value_hint
from grpo.config.section import load_yaml
from grpo.config.verifiers import VerificationConfig
from rewards.deadlines import JUDGE, deadline_problems, longest_verdict_s
from rewards.judges import CACHE_FOLDER

Config = TypeVar("Config", TrainConfig, SftConfig, DpoConfig, RewardConfig, FineTuningConfig, EvalConfig, TaskConfig)

# A part of the parser's message, and what to do about it.
_REMEDIES = (
    ("'\\t'", "replace the tab by blanks: YAML allows no tabs at the beginning of a line"),
    (
        "mapping values are not allowed",
        "keys of the same section begin in the same column, and a value that contains ': ' needs quotes",
    ),
    ("<block end>", "keys of the same section begin in the same column, and so do items of the same list"),
    ("end of stream", "close the quotes or the bracket"),
    ("end of line", "close the quotes"),
    ("expected ',' or", "close the bracket, and put commas between its items"),
    ("expected ':'", "write `key: value`, with a blank after the colon"),
    ("cannot start any token", "put the value into quotes"),
    ("expected the node content", "put the value into quotes"),
)
_LONGEST_LINE = 80
_TOML_LINE = re.compile(r"^\s*[\w.-]+\s*=\s", re.MULTILINE)
# Least likeness of an unknown key and a key here for a hint: a typing error in this section. Below it a hint misleads.
_ALIKE = 0.7


def load(schema: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `key=value` overrides, and check everything.

    Args:
        schema: class of the configuration.
        path: path of a YAML file.
        overrides: dotted keys with YAML values, for example `rollout.group_size=16` or `verifiers.0.weight=0.5`;
            a bare `resume=auto` stands for `run.resume=auto`.

    Raises:
        ValueError: the file cannot be read, or has problems; the message lists all of them, with remedies.
    """
    return resolve(schema, read(Path(path)), overrides, str(path))


def resolve(schema: type[Config], data: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Apply `key=value` overrides to plain data and check everything, as `load` does.

    Args:
        schema: class of the configuration.
        data: data of the file, or of its substitute; overrides change it.
        overrides: overrides in the format of `load`.
        source: origin of the data, for messages.

    Raises:
        ValueError: the data have problems; the message lists all of them, with remedies.
    """
    _refuse_other_job(schema, data, source)
    problems = [problem for override in overrides if (problem := _apply(data, override))]
    problems += list(_drop_unknown(schema, data, schema))
    config: Config | None = None
    try:
        config = _with_defaults_of_verifiers(schema.model_validate(data))
        problems += config.problems()
        if isinstance(config, TrainConfig):
            problems += deadline_problems(config.verifiers, config.verification.deadline_s)
            problems += exposed_paths(config.verifiers, local_paths(config), config.tools)
    except ValidationError as failure:
        wrong = [error["loc"] for error in failure.errors()]
        # If an item of a list is wrong, pydantic drops it and also reports that the list is too short.
        problems += [
            _describe(error)
            for error in failure.errors()
            if not any(other != error["loc"] and other[: len(error["loc"])] == error["loc"] for other in wrong)
        ]
        problems += _problems_beside(schema, data, wrong)
    if problems or config is None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        beside = " and its overrides (KEY=VALUE)" if overrides else ""
        raise ValueError(f"{count} in {source}{beside}:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def _with_defaults_of_verifiers(config: Config) -> Config:
    """Return the configuration with the defaults that follow from its verifiers: deadline, and cache of judges.

    A deadline of verdicts that nobody set becomes longer if programs or judges may take longer.
    """
    limits: VerificationConfig | TaskVerifierConfig
    if isinstance(config, TrainConfig):
        cache = {"cache": str(Path(config.run.folder) / CACHE_FOLDER)}
        verifiers = tuple(
            each.model_copy(update={"options": cache | each.options}) if each.use == JUDGE else each
            for each in config.verifiers
        )
        config = config.model_copy(update={"verifiers": verifiers})
        key, limits = "verification", config.verification
    elif isinstance(config, TaskConfig):
        key, limits, verifiers = "verifier", config.verifier, (config.named_verifier,)
    else:
        return config
    needed = longest_verdict_s(verifiers)
    if "deadline_s" in limits.model_fields_set or needed <= limits.deadline_s:
        return config
    return config.model_copy(update={key: limits.model_copy(update={"deadline_s": needed})})


def _refuse_other_job(schema: type[Config], data: dict[str, Any], source: str) -> None:
    """Refuse a config of the other job in one sentence, before each of its keys is an unknown key."""
    if not _is_job(schema):
        return
    mine = schema.job if issubclass(schema, FineTuningConfig) else "train"
    if mine in data:
        return
    other = next((job for job in FINE_TUNING if job in data), "train")
    strange = [other] if other != "train" else []
    if other == "train" and mine != "train":
        strange = [key for key in data if key in TrainConfig.model_fields and key not in schema.model_fields]
    if strange:
        raise ValueError(
            f"{source} is a config for `grpo {other}`, because it has {', '.join(strange)}, and this command needs a "
            f"config for `grpo {mine}`, with a section `{mine}`: run `grpo {other} {source}`, or give another config"
        )


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read(path: Path) -> dict[str, Any]:
    """Read a configuration file as plain data, without any check of the keys.

    Raises:
        ValueError: the file does not exist (the message has the nearest name), or is not YAML with top-level keys.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"there is no configuration file {path} (looked from {Path.cwd()}){hint}")
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as failure:
        raise ValueError(_not_yaml(path, failure)) from failure
    except UnicodeDecodeError as failure:
        raise ValueError(f"{path} is not UTF-8 text ({failure}); save it as UTF-8") from failure
    if not isinstance(data, dict):
        if _TOML_LINE.search(path.read_text(encoding="utf-8")):
            raise ValueError(_toml(path))
        raise ValueError(f"{path} must hold keys with values at its top level, got {type(data).__name__}")
    return data


def _toml(path: Path) -> str:
    return (
        f"{path} is TOML, and a config is YAML: write a table [train] as the key `train:`, and `steps = 5` as "
        "`steps: 5`, indented under it (configs/ has examples; docs/migrating.md has the keys of prime-rl)"
    )


def _not_yaml(path: Path, failure: yaml.YAMLError) -> str:
    """Return a message with the file, the line, its text and a remedy."""
    if path.suffix == ".toml":
        return _toml(path)
    mark = getattr(failure, "problem_mark", None)
    if not isinstance(failure, yaml.MarkedYAMLError) or mark is None:
        return f"{path} is not valid YAML: {failure}; remove control characters, and save the file as UTF-8"
    lines = path.read_text(encoding="utf-8").splitlines()
    text = lines[mark.line][:_LONGEST_LINE] if mark.line < len(lines) else "the end of the file"
    problem = ", ".join(filter(None, [failure.context, failure.problem]))
    since = failure.context_mark
    begin = f" (it begins in line {since.line + 1})" if since is not None and since.line != mark.line else ""
    remedy = next((said for part, said in _REMEDIES if part in problem), "compare this line with the line above it")
    return f"{path}:{mark.line + 1}: the file is not valid YAML: {problem}{begin}: {text!r}; {remedy}"


def _apply(data: dict[str, Any], override: str) -> str | None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        return f"the override {override!r} is not of the form key=value, for example rollout.group_size=16"
    try:
        value = load_yaml(text)
    except yaml.YAMLError:
        return f"the value of the override {override!r} is not valid YAML"
    *parents, last = ("run.resume" if key == "resume" else key).split(".")
    place: Any = data
    for part in parents:
        if isinstance(place, list) and (index := _index(place, part)) is not None:
            place = place[index]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            return f"the override {override!r} leads nowhere: {part!r} is not inside a section"
    if isinstance(place, list) and (index := _index(place, last)) is not None:
        place[index] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        return f"the override {override!r} leads nowhere: {last!r} is not inside a section"
    return None


def _index(items: list[Any], part: str) -> int | None:
    """The place of an item, by its number or by its `name`; None if there is no such item."""
    if part.isdigit():
        return int(part) if int(part) < len(items) else None
    return next((at for at, item in enumerate(items) if isinstance(item, dict) and item.get("name") == part), None)


def _drop_unknown(
    schema: type[BaseModel], data: dict[str, Any], root: type[BaseModel], where: str = ""
) -> Iterator[str]:
    without_hint: list[str] = []
    for key in list(data):
        if key not in schema.model_fields:
            value = data.pop(key)
            # Other trainers' keys are explained by keys of a job, which an evaluation or a task does not have.
            hints = foreign_hints(f"{where}{key}", value) if _is_job(root) else []
            nearest = "" if hints else _nearest(schema, str(key), root, where)
            if not hints and not nearest:
                without_hint.append(f"{where}{key}")
            yield from hints or ([f"{where}{key} is not a known key; {nearest}"] if nearest else [])
            continue
        section, many = _section(schema.model_fields[key].annotation)
        if section is None:
            continue
        values = data[key] if many else [data[key]]
        for index, value in enumerate(values if isinstance(values, list) else []):
            if isinstance(value, dict):
                yield from _drop_unknown(section, value, root, f"{where}{key}.{index}." if many else f"{where}{key}.")
    if without_hint:
        # The list of the section's keys is long, so it is printed once for all its unknown keys.
        are = "is not a known key" if len(without_hint) == 1 else "are not known keys"
        yield f"{', '.join(without_hint)} {are}; known here: {', '.join(schema.model_fields)}"


def _is_job(schema: type[BaseModel]) -> bool:
    return schema is TrainConfig or issubclass(schema, FineTuningConfig)


def _nearest(schema: type[BaseModel], key: str, root: type[BaseModel], where: str) -> str:
    """A hint for an unknown key: a key that is written almost alike, or the same key in another section; else empty."""
    near = difflib.get_close_matches(key, schema.model_fields, n=1, cutoff=_ALIKE)
    elsewhere = [name for name in _dotted_names(root) if name.rsplit(".", 1)[-1] == key]
    if elsewhere and not near:
        return f"did you mean {' or '.join(elsewhere[:3])}?"
    return f"did you mean {where}{near[0]}?" if near else ""


def _dotted_names(schema: type[BaseModel], where: str = "") -> Iterator[str]:
    for key, field in schema.model_fields.items():
        section, many = _section(field.annotation)
        yield f"{where}{key}"
        if section is not None:
            yield from _dotted_names(section, f"{where}{key}.0." if many else f"{where}{key}.")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The configuration section in a field, or None; and whether the field holds several sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union, tuple):
        for argument in arguments:
            section, _ = _section(argument)
            if section is not None:
                return section, origin is tuple
    return None, False


def _describe(error: Any) -> str:
    where = _dotted(error["loc"])
    if error["type"] == "missing":
        return f"{where} is missing"
    said = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    if error["type"] == "string_pattern_mismatch" and (form := FORMS.get(error["ctx"]["pattern"])):
        said = f"expected {form}"
    if error["type"] == "string_type" and isinstance(error["input"], dict):
        return f"{where}: {said}; got {error['input']!r}; text with braces needs quotes: '\"{{prompt}}\"'"
    if error["type"] == "model_type":
        empty = "; write {} for a section of defaults, or leave it out" if error["input"] is None else ""
        return f"{where}: expected a section, which is keys with values; got {error['input']!r}{empty}"
    if hint := value_hint(where, error["input"]):
        # The nearest name here may be another method, so the value's meaning replaces that hint.
        return f"{where}: {said.partition('; did you mean')[0]}; got {error['input']!r}; {hint}"
    return f"{where}: {said}; got {error['input']!r}"


def _problems_beside(schema: type[Config], data: dict[str, Any], wrong: Sequence[tuple[int | str, ...]]) -> list[str]:
    """The problems between valid values. Defaults, if they exist, replace the values at `wrong`."""
    for location in wrong:
        _remove(data, location)
    try:
        config = schema.model_validate(data)
    except ValidationError:
        # A required value is wrong or missing, so nothing more can be checked.
        return []
    keys = [_dotted(location) for location in wrong]
    return [problem for problem in config.problems() if not any(key in problem for key in keys)]


def _remove(data: Any, location: tuple[int | str, ...]) -> None:
    """Delete the value at `location`, if it exists."""
    *parents, last = location
    try:
        for part in parents:
            data = data[part]
        del data[last]
    except (KeyError, IndexError, TypeError):
        return


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
