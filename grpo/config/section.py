"""What every part of the configuration is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
# Less does not hold a worker of the verifiers.
WorkerMemory = Annotated[int, Field(ge=64)]
LogLevel = Literal["debug", "info", "warning", "error"]


class Section(BaseModel):
    """A part of the configuration. Unknown keys and numbers that are not finite are refused; values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )
