"""The settings that a worker gets when it starts, and the isolation that the worker then reports."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from sandbox.group_meter import GroupFiles
from sandbox.types import Isolation, IsolationLevel, Layer, MissingLayer


def _temporary_directory() -> str:
    import tempfile  # only the supervisor needs it; a worker gets the path in its settings

    return tempfile.gettempdir()


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of one worker.

    Attributes:
        supervisor: process number of the supervisor, which sends programs. The worker ends when this process ends.
        preload: modules that the worker imports once, so that programs need not load them again.
        without: layers to leave out, for tests which prove that an attack works without its layer.
        search_path: folders in which the supervisor finds modules.
        control_group: files of the control group that the worker enters, or the reason why it has no group.
        temporary: folder for scratch directories, if no file system can be mounted for them.
    """

    supervisor: int
    preload: tuple[str, ...]
    search_path: tuple[str, ...]
    without: frozenset[Layer] = frozenset()
    control_group: GroupFiles | str = "none was looked for"
    temporary: str = field(default_factory=_temporary_directory)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self) | {"without": sorted(self.without)}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> WorkerSettings:
        data = json.loads(text)
        group = data["control_group"]
        return cls(
            supervisor=data["supervisor"],
            preload=tuple(data["preload"]),
            search_path=tuple(data["search_path"]),
            without=frozenset(Layer(name) for name in data["without"]),
            control_group=group if isinstance(group, str) else GroupFiles(**group | {"join": tuple(group["join"])}),
            temporary=data["temporary"],
        )


def level_of(active: frozenset[Layer], missing: frozenset[Layer] = frozenset()) -> IsolationLevel:
    """The strongest level whose layers are all in force; at most `LIMITED` if programs run as root."""
    namespaces = {
        Layer.USER_NAMESPACE,
        Layer.PROCESS_NAMESPACE,
        Layer.NETWORK_NAMESPACE,
        Layer.IPC_NAMESPACE,
        Layer.PRIVATE_ROOT,
    }
    if Layer.RESOURCE_LIMITS not in active:
        return IsolationLevel.NONE
    if Layer.SECCOMP not in active or Layer.OWN_UID in missing:  # OWN_UID is missing only if root started the worker
        return IsolationLevel.LIMITED
    if Layer.LANDLOCK in active and namespaces <= active:
        return IsolationLevel.FULL
    if Layer.LANDLOCK in active or Layer.PRIVATE_ROOT in active:
        return IsolationLevel.CONFINED
    return IsolationLevel.FILTERED


def isolation_to_json(active: list[Layer], missing: list[MissingLayer]) -> bytes:
    return json.dumps({"active": active, "missing": [asdict(item) for item in missing]}).encode()


def isolation_from_json(text: bytes) -> Isolation:
    data = json.loads(text)
    active = tuple(Layer(name) for name in data["active"])
    missing = tuple(MissingLayer(Layer(item["layer"]), item["reason"], item["remedy"]) for item in data["missing"])
    return Isolation(level_of(frozenset(active), frozenset(item.layer for item in missing)), active, missing)
