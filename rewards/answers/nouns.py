"""Words after a number that do not change it: a unit, the counted noun, a remark such as "in total"."""

from __future__ import annotations

import re

_MOST_WORDS = 7
# Words that change the value before them, deny it, or make a claim about it.
_VALUE_WORDS = (
    "or and not nor neither no none never nothing more less least most than fewer greater about if unless when where "
    "whether mod modulo but except without instead rather otherwise versus vs to for is are was were be been am isn "
    "isnt has have had do does did can could may might will would shall should must base choose plus minus times over "
    "under below above between maybe perhaps possibly probably presumably likely hopefully supposedly roughly "
    "approximately approx around almost nearly really actually guess think assuming depending ish something anything "
    "unknown so since because thus hence therefore though although however while until that this which who whose what "
    "how why i you he she it they we wrong correct incorrect true false yes point negative positive opposite "
    "reciprocal inverse inverted negated divided multiplied added subtracted increased decreased reduced doubled "
    "tripled quadrupled halved squared cubed root power powers factorial log sqrt pi tau e infinity double twice "
    "thrice triple half halves quarter hundred hundreds thousand thousands million millions billion billions trillion "
    "trillions quadrillion lakh lakhs crore crores dozen dozens gross score scores tens k zero one two three four "
    "five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
    "thirty forty fifty sixty seventy eighty ninety tenth tenths hundredth hundredths thousandth thousandths "
    "millionth millionths third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth "
    "ninths elevenths twelfth twelfths thirteenths fourteenths fifteenths sixteenths seventeenths eighteenths "
    "nineteenths twentieth twentieths thirtieths fortieths fiftieths halfs st nd rd th nds rds ths twos threes fours "
    "fives sixes sevens eights nines fold myriad myriads googol mil mn bn permille ppm ppb factorials exponent "
    "logarithm raised exp binary octal hexadecimal hex radix modulus complement conjugate conjugates imaginary "
    "recurring repeating repeated xor too off nope nah unsure dunno bogus unlikely discarded rejected excluded invalid"
)
NO_NOUNS = frozenset(_VALUE_WORDS.split())
# These words change the number only if they end the text: "5 third graders" and "5 power drills" mean five.
_BEFORE_NOUNS = NO_NOUNS & {"third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "power"}
_REMARK = re.compile(
    r"(?:^|\s+)(?:in (?:total|all|sum)|altogether|all together|total|overall|combined|each|apiece|left|left over"
    r"|remaining|now|today|per person|in the end|at first|at the end|at the beginning|to start with|initially)$"
)
_PART = r"[A-Za-z]+(?:['\u2019-][A-Za-z]+)*\.?"
PHRASE = re.compile(rf"{_PART}(?:(?:\s?/\s?|\s){_PART})*")
_WORD = re.compile(r"[A-Za-z]+")


def noun(text: str) -> str | None:
    """Return the unit or noun after a number, without brackets and remarks; None for other text.

    The result is empty if the text is only a remark.
    """
    plain = " ".join(text.split())
    while plain[:1] == "(" and plain[-1:] == ")":
        plain = plain[1:-1].strip()
    plain = plain.rstrip(".,").strip()
    if len(plain) > 80 or not PHRASE.fullmatch(plain):
        return None
    while (remark := _REMARK.search(plain)) is not None:
        plain = plain[: remark.start()]
    words = _WORD.findall(plain.lower())
    if words == ["times"]:  # "5 times" is a count, but "5 times ten" and "5 times as many" are other values
        return plain
    if len(words) > _MOST_WORDS:
        return None
    for place, word in enumerate(words):
        if word in NO_NOUNS and not (word in _BEFORE_NOUNS and len(words) > 1 and place == 0):
            return None
    # "5 percent off" and "5 percent more" are not percentages.
    percent = {"percent", "pct", "percentage"} & set(words)
    return None if percent and words[0] in percent and words[1:2] not in ([], ["of"]) else plain
