"""Names on the Hugging Face hub with a revision after an `@`, for example `Qwen/Qwen3-0.6B@main`, or a commit's hash.

The owner of a repository can change its content at any time. The content of a commit never changes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from grpo.hub_access import why_offline

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def may_be_on_hub(policy: str) -> bool:
    """Return True if this is a possible name on the hub, such as `Qwen/Qwen3-0.6B`, and False for a path."""
    return _NAME.fullmatch(name_of(policy)) is not None


def with_revision(name: str, revision: str | None) -> str:
    """Return the name with the revision. If there is no revision, return the unchanged name."""
    return f"{name_of(name)}@{revision}" if revision else name


def name_of(policy: str) -> str:
    """Return the policy's folder, or its name on the hub without the revision."""
    return policy if Path(policy).is_dir() else policy.partition("@")[0]


def revision_of(policy: str) -> str | None:
    """Return the revision in a name on the hub. Return None for a folder, or for a name without a revision."""
    return None if Path(policy).is_dir() else policy.partition("@")[2] or None


def ask_hub(policy: str) -> str:
    """Return why only the hub's cache can be read (`grpo.hub_access`); the empty text for a folder, or if it answers.

    To be called before a library asks for a policy.
    """
    return "" if Path(policy).is_dir() else why_offline()


def at_revision(policy: str) -> dict[str, Any]:
    """Return the keyword argument `revision` for `from_pretrained`. Return no argument if there is no revision."""
    revision = revision_of(policy)
    return {"revision": revision} if revision else {}
