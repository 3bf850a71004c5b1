"""Chinese numbers with their counters, units and scales: `12个`, `3.5千克`, `2万`."""

from __future__ import annotations

import re
from fractions import Fraction

# For each unit: its LaTeX. A counter (a Chinese measure word) is read as a noun, which may be missing.
_UNITS = {
    "元": "yuan", "块": "yuan", "人民币": "yuan", "美元": "dollars", "欧元": "euros",
    "千米": "km", "公里": "km", "米": "m", "分米": "dm", "厘米": "cm", "毫米": "mm",
    "平方米": "m^2", "平方厘米": "cm^2", "平方千米": "km^2",
    "立方米": "m^3", "立方厘米": "cm^3", "升": "L", "毫升": "mL",
    "千克": "kg", "公斤": "kg", "克": "g", "毫克": "mg",
    "小时": "hours", "分钟": "minutes", "秒": "seconds", "天": "days", "星期": "weeks",
    "个月": "months", "年": "years",
}  # fmt: skip
_COUNTERS = "个人名位只本张条枚件棵辆次种台支根块颗箱瓶袋头匹组页间把朵片道岁分点"
_SCALES = {"万": 10**4, "亿": 10**8}
_NAMES = "|".join(sorted({*_UNITS, *_COUNTERS}, key=len, reverse=True))
_BEHIND = re.compile(rf"(?<=[\d}})])\s*+(?:({_NAMES})(?:/({_NAMES}))?)(?![\u4e00-\u9fff])")
_SCALED = re.compile(r"(?<![\d.,])(\d{1,12}(?:\.\d{1,12})?)\s*+([万亿])")
_DEGREES = re.compile(r"(?<=\d)\s*+度(?![\u4e00-\u9fff])")
_FONT = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*+\{\s*+([\u4e00-\u9fff/]{1,8})\s*+\}")


def chinese(text: str) -> str:
    r"""Write the Chinese units of a text as `\text{...}`.

    If there are other words, they stay, and the whole answer is then read as words.
    """
    if not any("\u4e00" <= character <= "\u9fff" for character in text):
        return text
    text = _FONT.sub(r"\1", text)
    text = _SCALED.sub(_scaled, text)
    text = _DEGREES.sub(r"^\\circ ", text)
    return _BEHIND.sub(_unit, text)


def _scaled(match: re.Match[str]) -> str:
    value = Fraction(match[1]) * _SCALES[match[2]]
    return str(int(value)) if value.denominator == 1 else match[0]


def _unit(match: re.Match[str]) -> str:
    unit = _UNITS.get(match[1], "items")
    over = f"/{_UNITS.get(match[2], 'items')}" if match[2] else ""
    return rf"\text{{ {unit}{over}}}"
