"""The section `algorithm.teacher`: a model that scores each token that the policy samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from grpo.config.section import Section


class TeacherConfig(Section):
    """On-policy distillation: a frozen teacher scores the tokens that the policy samples."""

    path: str
    """Folder of the teacher in Hugging Face format, or a hub name. Its tokenizer must be the policy's."""
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)] | None = None
    """Commit, tag or branch of a hub name; by default the newest commit of `main`."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of log p_teacher - log p_policy, which is added to the advantage of each sampled token."""
    alone: bool = False
    """If true, the policy learns from the teacher alone: the verifiers only measure."""
