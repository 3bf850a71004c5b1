"""What counts as the same answer, where people disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Conventions:
    r"""What counts as the same answer, where people disagree.

    Attributes:
        percent: `either`: gold `p%` is matched by `p%`, `p/100` and bare `p`; `value`: by `p%` and `p/100`;
            `strict`: by `p%` alone.
        units: `missing`: a unit missing on one side is ignored, two different ones are not equal; `strict`: both
            must have it; `ignore`: units are not looked at.
        ordered: bare lists and sets must be in the gold's order.
        rounded: a gold decimal, also in scientific notation or with a unit, is matched by an answer that rounds to it
            at the gold's last digit. Off: an exact gold is never matched by a rounded answer, nor a rounded gold by
            an exact one.
        bare_base: a gold in a base is also matched by its digits without the base.
        log_base: 10 or, for 0, e: what `\log` without a base means.
        decimal_comma: `3,14` may be read as 3.14 where the gold is a single number; not `3,141`, whose comma groups
            thousands, unless it is `always`.
    """

    percent: Literal["either", "value", "strict"] = "either"
    units: Literal["missing", "strict", "ignore"] = "missing"
    ordered: bool = False
    rounded: bool = False
    bare_base: bool = False
    log_base: int = 10
    decimal_comma: bool | Literal["always"] = True

    def __post_init__(self) -> None:
        if self.percent not in ("either", "value", "strict"):
            raise ValueError(f"percent must be 'either', 'value' or 'strict', got {self.percent!r}")
        if self.units not in ("missing", "strict", "ignore"):
            raise ValueError(f"units must be 'missing', 'strict' or 'ignore', got {self.units!r}")
        if self.decimal_comma not in (True, False, "always"):
            raise ValueError(f"decimal_comma must be true, false or 'always', got {self.decimal_comma!r}")
        if self.log_base != 0 and self.log_base < 2:
            raise ValueError(f"log_base must be 0 (for e) or a whole number above 1, got {self.log_base!r}")


DEFAULT = Conventions()
