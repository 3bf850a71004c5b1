"""Read a configuration: YAML, dotted overrides, and a report of all problems at once."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from grpo.config import SftConfig, TrainConfig
from grpo.config.code import code_problems, exposed_paths
from grpo.config.evaluation import EvalConfig, TaskConfig
from grpo.config.foreign_keys import foreign_hints

Config = TypeVar("Config", TrainConfig, SftConfig, EvalConfig, TaskConfig)


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
    problems = [problem for override in overrides if (problem := _apply(data, override))]
    problems += list(_drop_unknown(schema, data, schema))
    config: Config | None = None
    try:
        config = schema.model_validate(data)
        problems += config.problems()
        if isinstance(config, TrainConfig):
            problems += code_problems(config.verifiers, config.verification.deadline_s)
            problems += exposed_paths(config.verifiers, _local_paths(config))
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
        raise ValueError(f"{count} in {source}:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def _local_paths(config: TrainConfig) -> dict[str, str]:
    """The paths of a run's data and of its folder, by the setting that names them."""
    paths = {"run.folder": config.run.folder}
    sources = [("data", config.data)] + ([("evaluation.data", config.evaluation.data)] if config.evaluation else [])
    for where, source in sources:
        paths |= {f"{where}.path": path for path in source.paths}
        if source.hub and not source.path:
            home = os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
            paths[f"{where}.hub in HF_HOME"] = os.environ.get("HF_DATASETS_CACHE", home)
    return paths


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
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise ValueError(f"{path} is not valid YAML: {failure}") from failure
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold keys with values at its top level, got {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> str | None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        return f"the override {override!r} is not of the form key=value, for example rollout.group_size=16"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"the value of the override {override!r} is not valid YAML"
    *parents, last = ("run.resume" if key == "resume" else key).split(".")
    place: Any = data
    for part in parents:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            return f"the override {override!r} leads nowhere: {part!r} is not inside a section"
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        return f"the override {override!r} leads nowhere: {last!r} is not inside a section"
    return None


def _drop_unknown(
    schema: type[BaseModel], data: dict[str, Any], root: type[BaseModel], where: str = ""
) -> Iterator[str]:
    for key in list(data):
        if key not in schema.model_fields:
            value = data.pop(key)
            # Other trainers' keys are explained by keys of a job, which an evaluation or a task does not have.
            hints = foreign_hints(f"{where}{key}", value) if root in (TrainConfig, SftConfig) else []
            yield from hints or [f"{where}{key} is not a known key; {_nearest(schema, str(key), root, where)}"]
            continue
        section, many = _section(schema.model_fields[key].annotation)
        if section is None:
            continue
        values = data[key] if many else [data[key]]
        for index, value in enumerate(values if isinstance(values, list) else []):
            if isinstance(value, dict):
                yield from _drop_unknown(section, value, root, f"{where}{key}.{index}." if many else f"{where}{key}.")


def _nearest(schema: type[BaseModel], key: str, root: type[BaseModel], where: str) -> str:
    """A hint for an unknown key: a key that is written almost alike, or the same key in another section."""
    near = difflib.get_close_matches(key, schema.model_fields, n=1, cutoff=0.75)
    elsewhere = [name for name in _dotted_names(root) if name.rsplit(".", 1)[-1] == key]
    if elsewhere and not near:
        return f"did you mean {' or '.join(elsewhere[:3])}?"
    near = near or difflib.get_close_matches(key, schema.model_fields, n=1, cutoff=0.5)
    return f"did you mean {where}{near[0]}?" if near else f"known here: {', '.join(schema.model_fields)}"


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
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}; got {error['input']!r}"


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
