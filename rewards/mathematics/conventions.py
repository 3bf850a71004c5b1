"""The conventions that decide whether two answers are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Conventions:
    r"""Settings for answers that some people consider equal, and others do not.

    Attributes:
        percent: which answers equal the gold answer `p%`. `either`: `p%`, `p/100` and `p`; `value`: `p%` and `p/100`;
            `strict`: only `p%`.
        units: how units are compared. `missing`: a unit may be missing on one side, but different units are not equal;
            `strict`: both sides must have the unit; `ignore`: units are not compared.
        ordered: whether sets, and lists without brackets, must have the gold answer's order.
        rounded: whether an answer equals a gold decimal if it rounds to this decimal at the decimal's last digit. The
            decimal may have a unit or be in scientific notation. If false, a rounded value never equals an exact one.
        bare_base: whether an answer of only the digits, without the base, equals a gold numeral with a base.
        log_base: base of `\log` if no base is written; 0 means e.
        decimal_comma: whether `3,14` may mean 3.14 if the gold answer is a single number. In `3,141` the comma still
            separates thousands, unless the setting is `always`.
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
