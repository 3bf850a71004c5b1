"""Units of measure, with exact conversions only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from rewards.answers.nouns import NO_NOUNS, PHRASE, noun
from rewards.mathematics.nodes import Unit

# For each unit: its size in the base unit, and its spellings. The first word of a name is the base unit. Different base
# units are never converted into each other.
_TABLE: Mapping[str, tuple[str, str]] = {
    "metre": ("1", "m meter metre meters metres"),
    "metre kilo": ("1000", "km kilometer kilometre kilometers kilometres"),
    "metre centi": ("1/100", "cm centimeter centimetre centimeters centimetres"),
    "metre milli": ("1/1000", "mm millimeter millimetre millimeters millimetres"),
    "metre inch": ("254/10000", "in inch inches"),
    "metre foot": ("3048/10000", "ft foot feet"),
    "metre yard": ("9144/10000", "yd yard yards"),
    "metre mile": ("1609344/1000", "mi mile miles"),
    "second": ("1", "s sec secs second seconds"),
    "second minute": ("60", "min mins minute minutes"),
    "second hour": ("3600", "h hr hrs hour hours"),
    "second day": ("86400", "day days"),
    "second week": ("604800", "week weeks"),
    "gram": ("1", "g gram grams"),
    "gram kilo": ("1000", "kg kilogram kilograms"),
    "gram milli": ("1/1000", "mg milligram milligrams"),
    "gram ounce": ("28349523125/1000000000", "oz ounce ounces"),
    "gram pound": ("45359237/100000", "lb lbs pound pounds"),
    "litre": ("1", "l L liter litre liters litres"),
    "litre milli": ("1/1000", "ml mL milliliter millilitre milliliters millilitres"),
    "month": ("1", "month months"),
    "month year": ("12", "yr yrs year years"),
    "USD": ("1", "dollar dollars usd USD bucks"),
    "USD cent": ("1/100", "cent cents"),
    "EUR": ("1", "euro euros EUR"),
    "GBP": ("1", "GBP"),
    "JPY": ("1", "JPY yen"),
    "INR": ("1", "INR rupee rupees"),
    "newton": ("1", "N newton newtons"),
    "joule": ("1", "J joule joules"),
    "watt": ("1", "W watt watts"),
    "volt": ("1", "V volt volts"),
    "hertz": ("1", "Hz hertz"),
    "kelvin": ("1", "K kelvin"),
    "celsius": ("1", "degC celsius Celsius"),
    "fahrenheit": ("1", "degF fahrenheit Fahrenheit"),
    "mole": ("1", "mol mole moles"),
    "square unit": ("1", ""),
    "length unit": ("1", "unit units"),
}
UNITS: Mapping[str, tuple[str, Fraction]] = {
    word: (name.split()[0], Fraction(factor)) for name, (factor, words) in _TABLE.items() for word in words.split()
}
# Words after a number that are units without a text macro. Single letters are not in this set: `5m` is 5 times m.
BARE_UNITS = frozenset(word for word in UNITS if len(word) > 1 and word not in ("in", "min")) | {
    "mph", "kph", "degrees", "degree", "percent", "pct", "percentage", "square", "cubic", "sq",
}  # fmt: skip
CURRENCY: Mapping[str, Unit] = {
    "$": Unit(Fraction(1), (("USD", 1),)),
    "\\$": Unit(Fraction(1), (("USD", 1),)),
    "\u20ac": Unit(Fraction(1), (("EUR", 1),)),
    "\u00a3": Unit(Fraction(1), (("GBP", 1),)),
    "\\pounds": Unit(Fraction(1), (("GBP", 1),)),
    "\\euro": Unit(Fraction(1), (("EUR", 1),)),
    "\u00a5": Unit(Fraction(1), (("JPY", 1),)),
    "\u20b9": Unit(Fraction(1), (("INR", 1),)),
}
_SHORT = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour"}
_PART = re.compile(r"(/|\bper\b|\ba\b)|([A-Za-z]+)(?:\^?\{?(-?\d)\}?)?|[\s*.]+")
_MAX_LENGTH = 80
# "A litre of milk" means a litre, and "push-ups" is a single word.
_OF = re.compile(rf"^((?:(?:square|sq\.?|cubic) )?(?:{'|'.join(sorted(UNITS, key=len, reverse=True))})) of .*$")
JOINED = str.maketrans("", "", "-'\u2019")


def read_unit(text: str) -> Unit | None:
    """Read `km/h`, `square inches`, `cm^2`, `miles per hour`, or counted things (`apples`, `pieces of candy`).

    Return None if the text has no letters, other signs, or words that change the value, or if it is too long.
    """
    text = text.strip()
    phrase = PHRASE.fullmatch(" ".join(text.split())) is not None
    if phrase:
        text = _OF.sub(r"\1", (noun(text) or "")).translate(JOINED)
    text = _SHORT.get(text, text)
    if not text or len(text) > _MAX_LENGTH:
        return None
    powers: dict[str, int] = {}
    factor, sign, at, raised = Fraction(1), 1, 0, 1
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            return None
        at = part.end()
        if part[1]:
            sign = -1
            continue
        word = part[2]
        if word is None:
            continue
        if (not phrase and word.lower() in NO_NOUNS) or (
            len(word) == 1 and word not in UNITS and word in "BMbcdefijknopqrtuvwxyz"
        ):
            return None
        if word == "in" and part.end() < len(text):  # "students in class" are not measured in inches
            continue
        if word.lower() in ("square", "sq", "cubic"):
            raised = 3 if word.lower() == "cubic" else 2
            continue
        base, size = UNITS.get(word) or UNITS.get(word.lower()) or (_singular(word.lower()), Fraction(1))
        power = sign * raised * int(part[3] or 1)
        if base == "litre":  # a thousandth of a cubic metre
            base, factor, size, power = "metre", factor * (size / 1000) ** power, Fraction(1), 3 * power
        powers[base] = powers.get(base, 0) + power
        factor *= size**power
        raised = 1
    dimensions = tuple(sorted((base, power) for base, power in powers.items() if power))
    return Unit(factor, dimensions) if dimensions else None


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
