"""The files and folders that a job names: made absolute, and checked against the nodes on which the job runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from grpo.config import JobConfig
from grpo.config.inputs import DatasetConfig, PolicyConfig

Kind = Literal["folder", "data", "policy", "code", "module", "option"]
_CODE_FILE = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")
_MODULE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*):\w+")


@dataclass(frozen=True, slots=True)
class NamedPath:
    """A path that the configuration names.

    Attributes:
        key: dotted key of the configuration.
        given: the path as the configuration has it.
        path: the absolute path.
        kind: what the path names. `module` is a Python module that lies in the working folder; `option` is a text in
            `options` that is also the name of a file in the working folder.
    """

    key: str
    given: str
    path: Path
    kind: Kind

    @property
    def fixed_part(self) -> Path:
        """The path up to its first wildcard."""
        parts = self.path.parts
        count = next((place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
        return Path(*parts[:count])


@dataclass(frozen=True, slots=True)
class _Place:
    """A text of the configuration, and the list or dictionary that holds it."""

    key: str
    holder: Any
    index: str | int
    path: NamedPath


def named_paths(settings: JobConfig, folder: Path) -> list[NamedPath]:
    """Return all paths of a configuration.

    Args:
        settings: the configuration.
        folder: folder that relative paths start from, absolute.
    """
    return [place.path for place in _places(settings, settings.model_dump(mode="json"), folder)]


def with_absolute_paths(settings: JobConfig, folder: Path) -> JobConfig:
    """Return the configuration with absolute paths. Modules and options stay as they are.

    Args:
        settings: the configuration.
        folder: folder that relative paths start from, absolute.
    """
    data = settings.model_dump(mode="json")
    for place in _places(settings, data, folder):
        named = place.path
        if named.kind == "code":
            _, _, function = named.given.rpartition(":")
            place.holder[place.index] = f"{named.path}:{function}"
        elif named.kind not in ("module", "option"):
            place.holder[place.index] = str(named.path)
    return type(settings).model_validate(data)


def missing_problems(paths: Sequence[NamedPath], *, policy_comes_later: bool) -> list[str]:
    """Return the files and folders that do not exist on this machine, whose file system the nodes share.

    Args:
        paths: paths of the configuration.
        policy_comes_later: whether the job waits for another job, which may make the policy.
    """
    remedies = {
        "policy": "give a folder in Hugging Face format or a hub name; `grpo sft` makes a policy",
        "data": "check data.path",
        "code": "check the name of the file",
    }
    return [
        f"{path.key}={path.given}: {path.fixed_part} does not exist; {remedies[path.kind]}"
        for path in paths
        if path.kind in remedies and not path.fixed_part.exists() and not (path.kind == "policy" and policy_comes_later)
    ]


def reach_problems(paths: Sequence[NamedPath], storage: str | None, shared: Sequence[str]) -> list[str]:
    """Return the paths outside the folders that every node reaches.

    Args:
        paths: paths of the configuration.
        storage: value of `launch.storage`. Without it, nothing is known of the nodes, and nothing is a problem.
        shared: value of `launch.shared_folders`.
    """
    if storage is None:
        return []
    return [
        f"{path.key}={path.given} is {path.path}, which does not lie in launch.storage={storage}; move it there, or "
        "name its folder in launch.shared_folders if every node has it at this path"
        for path in paths
        if path.kind not in ("module", "option") and not _lies_in(path.path, (storage, *shared))
    ]


def elsewhere_problems(paths: Sequence[NamedPath], folder: Path, *, has_storage: bool) -> list[str]:
    """Return the paths that mean something only in this folder. The job starts in another folder.

    Args:
        paths: paths of the configuration.
        folder: folder that relative paths start from here.
        has_storage: whether the job has a `launch.storage`. Then `reach_problems` judges files.
    """
    problems = []
    for path in paths:
        if path.kind == "module":
            problems.append(
                f"{path.key}={path.given} names a module in {folder}, and the job starts in another folder; write "
                f"{path.path}:FUNCTION with a path that all nodes reach, or install the module on the nodes"
            )
        elif path.kind == "option":
            problems.append(
                f"{path.key}={path.given} names a file in {folder}, and the job starts in another folder; give its "
                "absolute path, on storage that all nodes reach"
            )
        elif not has_storage and not Path(path.given).is_absolute():
            problems.append(
                f"{path.key}={path.given} starts from {folder}, and the job starts in another folder; give an "
                "absolute path, or name the shared storage in launch.storage"
            )
    return problems


def _lies_in(path: Path, folders: Sequence[str]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _places(section: BaseModel, data: dict[str, Any], folder: Path, where: str = "") -> Iterator[_Place]:
    """The places of all paths in `data`, the plain data of `section`."""
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{where}{name}"
        if key == "launch":
            continue
        if isinstance(value, BaseModel):
            yield from _places(value, data[name], folder, f"{key}.")
        elif isinstance(value, dict) and name == "options":
            yield from _options(value, data[name], folder, key)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _places(item, data[name][index], folder, f"{key}.{index}.")
                elif isinstance(item, str) and (kind := _kind(section, name, key, item, folder)):
                    yield _place(f"{key}.{index}", data[name], index, item, kind, folder)
        elif isinstance(value, str) and (kind := _kind(section, name, key, value, folder)):
            yield _place(key, data, name, value, kind, folder)


def _place(key: str, holder: Any, index: str | int, given: str, kind: Kind, folder: Path) -> _Place:
    text = given
    if kind == "code":
        text = given.rpartition(":")[0]
    elif kind == "module":
        text = given.rpartition(":")[0].replace(".", "/") + ".py"
    path = folder / Path(text).expanduser()
    # Without `resolve`, because a symbolic link may lead elsewhere on the nodes.
    normal = Path("/", *(part for part in _without_dots(path)))
    return _Place(key, holder, index, NamedPath(key, given, normal, kind))


def _without_dots(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts[1:]:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return parts


def _kind(section: BaseModel, name: str, key: str, value: str, folder: Path) -> Kind | None:
    """What a text of the configuration names; None if it is no path."""
    if key == "run.folder":
        return "folder"
    if isinstance(section, DatasetConfig) and name == "path":
        return "data"
    if isinstance(section, PolicyConfig) and name == "path":
        return "policy" if _is_local_policy(value, folder) else None
    if _CODE_FILE.fullmatch(value):
        return "code"
    if module := _MODULE.fullmatch(value):
        first = module["module"].split(".")[0]
        return "module" if (folder / f"{first}.py").is_file() or (folder / first / "__init__.py").is_file() else None
    return None


def _is_local_policy(value: str, folder: Path) -> bool:
    """Whether a policy's path is a folder and not a hub name, also if the folder does not exist yet."""
    first = value.split("/")[0]
    return value.startswith(("/", ".", "~")) or value.count("/") > 1 or (folder / first).is_dir()


def _options(value: Any, data: Any, folder: Path, key: str) -> Iterator[_Place]:
    """The options whose text is the relative path of a file in `folder`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for index, item in items:
        if isinstance(item, str):
            # A name without a dot or a slash is nearly always a word.
            is_file = re.search(r"[./]", item) and not item.startswith("/") and "\0" not in item and len(item) < 1000
            if is_file and (folder / item).is_file():
                yield _place(f"{key}.{index}", data, index, item, "option", folder)
        else:
            yield from _options(item, data[index], folder, f"{key}.{index}")
