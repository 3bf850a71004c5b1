"""Names on the Hugging Face hub with the revision that is meant: `Qwen/Qwen3-0.6B@main`, or a commit's hash behind `@`.

What a name means on the hub changes whenever its owner wants. A commit's hash never does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def with_revision(name: str, revision: str | None) -> str:
    """The name with its revision; as it is without one."""
    return f"{name_of(name)}@{revision}" if revision else name


def name_of(policy: str) -> str:
    """The folder, or the name on the hub without its revision."""
    return policy if Path(policy).is_dir() else policy.partition("@")[0]


def revision_of(policy: str) -> str | None:
    """The revision in a name on the hub; None for a folder, and where none is named."""
    return None if Path(policy).is_dir() else policy.partition("@")[2] or None


def at_revision(policy: str) -> dict[str, Any]:
    """What `from_pretrained` takes behind the folder or name."""
    revision = revision_of(policy)
    return {"revision": revision} if revision else {}
