"""Answers made to hang, crash or run something; none of them is a right answer to its gold."""

from __future__ import annotations

import random

MATRIX = " \\\\ ".join(" & ".join(str(row * 7 + column) for column in range(200)) for row in range(200))
INJECTION = "__import__('os').system('touch /tmp/verigrpo-was-here')"

SCRAPS = ("\\frac", "{", "}", "^", "_", "\\sqrt", "x", "2", "(", ")", "\\left", ",", "|", " ")


def hostile_pairs() -> dict[str, tuple[str, str]]:
    """Gold and answer by a short name."""
    noise = random.Random(7)
    pairs = {
        "tower of powers": ("5", "9^{9^{9^{9^{9}}}}"),
        "flat tower": ("5", "9^9^9^9^9"),
        "tower minus itself": ("5", "9^{9^{9^9}} - 9^{9^{9^9}} + 6"),
        "huge factorial": ("120", "(10^{100})!"),
        "factorial of a factorial": ("120", "((((9!)!)!)!)!"),
        "many factorials": ("120", "5000! \\cdot 4999! \\cdot 4998! \\cdot 4997! " * 20),
        "huge binomial": ("10", "\\binom{10^{50}}{10^{49}}"),
        "binomial of thousands": ("10", "\\binom{1000000}{500000}"),
        "huge root": ("2", "\\sqrt[10^9]{10^{10^9}}"),
        "root of a long number": ("2", "\\sqrt{" + "7" * 900 + "}"),
        "near a perfect square": ("x", "\\sqrt{10^{2000}+1}"),
        "long integer": ("5", "7" * 100_000),
        "long decimal": ("5", "0." + "3" * 99_000),
        "long exponent": ("5", "2^{" + "9" * 2000 + "}"),
        "scientific": ("5", "1e9999"),
        "scientific, long": ("5", "1e" + "9" * 1000),
        "scientific, negative": ("5", "1e-9999999"),
        "deep parentheses": ("5", "(" * 5000 + "5" + ")" * 5000),
        "deep braces": ("5", "{" * 1400 + "6" + "}" * 1400),
        "deep fractions": ("5", "\\frac{1}{1+" * 400 + "2" + "}" * 400),
        "deep roots": ("5", "\\sqrt{" * 400 + "2" + "}" * 400),
        "deep functions": ("5", "\\sin " * 700 + "x"),
        "deep exponents": ("5", "x^{" * 500 + "2" + "}" * 500),
        "deep minus": ("5", "-" * 2900 + "5x"),
        "deep bars": ("5", "|" * 1000 + "x" + "|" * 1000),
        "large matrix": ("5", "\\begin{pmatrix}" + MATRIX + "\\end{pmatrix}"),
        "matrix against matrix": (
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            "\\begin{pmatrix}" + "1&2\\\\" * 300 + "\\end{pmatrix}",
        ),
        "unclosed matrix": ("5", "\\begin{pmatrix}" + "1&" * 700),
        "injection": ("5", INJECTION),
        "injection in text": ("5", "\\text{" + INJECTION + "}"),
        "injection in operatorname": ("5", "\\operatorname{" + INJECTION + "}(5)"),
        "dunder": ("5", "().__class__.__bases__[0].__subclasses__()"),
        "format": ("5", "{0.__class__.__init__.__globals__}"),
        "many terms": ("x", "+".join(f"x_{{{n}}}" for n in range(350))),
        "many factors": ("x", "".join(f"(x+{n})" for n in range(10, 400))),
        "big product": ("1", "\\cdot ".join("99999999999999999999" for _ in range(130))),
        "expanded power": ("1", "(1+x+y+z+w)^{10000}"),
        "power of a power": ("x", "((((x^{99})^{99})^{99})^{99})^{99}"),
        "trigonometric tower": ("x", "\\sin(\\cos(\\tan(" * 9 + "x" + ")))" * 9),
        "exponential tower": ("5", "e^{e^{e^{e^{e^{e}}}}}"),
        "sine of a giant": ("0", "\\sin(10^{10^{10}})"),
        "sine of a long integer": ("0.5", "\\sin(" + "8" * 900 + ")"),
        "many items": ("1,2,3", ",".join(str(n) for n in range(800))),
        "many equal items": ("1,2", ", ".join(["\\sqrt{2}"] * 90)),
        "hard matching": (
            ", ".join(f"\\sqrt{{{n}}}" for n in range(2, 60)),
            ", ".join(f"\\sqrt{{{n}}}" for n in range(61, 2, -1)),
        ),
        "nested lists": ("1", "(" + "(1,2)," * 200 + "3)"),
        "nested sets": ("\\{1\\}", "\\{" * 60 + "1" + "\\}" * 60),
        "union of many": ("(0,1)", "\\cup".join(f"({n},{n + 1})" for n in range(200))),
        "intersections": ("(0,1)", "\\cap".join(f"({n},{n + 500})" for n in range(150))),
        "commas": ("5", "," * 2900),
        "signs": ("5", "+-" * 1400 + "6"),
        "plus-minus": ("5", "\\pm 1 " * 200),
        "equals": ("5", "=".join(["x"] * 900)),
        "chain": ("5", "<".join(str(n) for n in range(600))),
        "primes": ("5", "x" + "'" * 2000),
        "percents": ("5", "5" + "%" * 1000),
        "exclamations": ("5", "3" + "!" * 1000),
        "degrees": ("5", "5" + "^\\circ" * 300),
        "subscripts": ("x", "x" + "_x" * 900),
        "open subscripts": ("x", "x_{" * 900),
        "text macros": ("5", "\\text{ or } 5" * 200),
        "unclosed text": ("5", "\\text{" * 500),
        "spaces": ("5", "6" + " " * 2900 + "7"),
        "spaced numerals": ("5", "1 " * 1400),
        "thousands": ("5", "1,000" * 500),
        "overlines": ("5", "0.\\overline{" + "3" * 900 + "}"),
        "dots": ("5", "0." + "12" * 400 + "3..."),
        "colons": ("1:2", ":".join(["1"] * 900)),
        "set builders": ("\\{x : x>1\\}", "\\{x : " * 300 + "x>1" + "\\}" * 300),
        "sums": ("5", "\\sum_{k=1}^{10^{100}} " * 100 + "k"),
        "integrals": ("5", "\\int_0^1 " * 300 + "x dx"),
        "calls": ("5", "f(" * 500 + "x" + ")" * 500),
        "logs": ("5", "\\log_{" * 300 + "2" + "}" * 300),
        "huge gcd": ("5", "\\gcd(2^{200000}, 3^{100000})"),
        "huge mod": ("5", "7^{7^{7^7}} \\bmod 10"),
        "division by zero": ("5", "\\frac{1}{0}"),
        "division by a hidden zero": ("5", "\\frac{5}{\\sqrt{2}^2-2}"),
        "zero to the zero": ("5", "0^{0^{0}}\\cdot 0"),
        "infinity minus infinity": ("0", "\\infty-\\infty"),
        "imaginary tower": ("1", "i^{i^{i^{i}}}"),
        "null bytes": ("5", "\x00\x01\x02" * 900),
        "surrogates": ("5", "\ud800\udfff" * 900),
        "combining marks": ("5", "5" + "\u0301" * 2000),
        "right to left": ("5", "\u202e5\u202c6"),
        "random unicode": ("5", "".join(chr(noise.randrange(32, 0x2FFF)) for _ in range(2900))),
        "random LaTeX": (
            "5",
            "".join(
                noise.choice(["\\frac", "{", "}", "^", "_", "\\sqrt", "x", "2", "(", ")", "\\left", ",", "|", " "])
                for _ in range(900)
            ),
        ),
        "dollars": ("5", "$" * 2900),
        "backslashes": ("5", "\\" * 2900),
        "unclosed boxes": ("5", "\\boxed{" * 2000),
    }
    return pairs


def hostile_completions() -> dict[str, tuple[str, str]]:
    """Whole completions made to stall the search for the answer: gold and completion by a short name."""
    return {
        "boxes never closed": ("5", "\\boxed{" * 40_000),
        "boxes in boxes": ("5", "\\boxed{" * 3000 + "6" + "}" * 3000),
        "many boxes": ("5", "\\boxed{6}, " * 20_000),
        "braces": ("5", "\\boxed{" + "{" * 100_000),
        "think tags": ("5", "<think>" * 30_000),
        "closing think tags": ("5", "</think>" * 30_000),
        "answer tags": ("5", "<answer>" * 30_000),
        "answers": ("5", "answer is " * 30_000),
        "answers with stars": ("5", "answer" + " *" * 50_000),
        "hashes": ("5", "#### " * 40_000),
        "dollars": ("5", "$" * 100_001),
        "digits": ("5", "The answer is " + "1" * 100_000),
        "sentences": ("5", "6. " * 60_000),
        "full stops": ("5", "." * 200_000),
        "spaces": ("5", " " * 200_000 + "6"),
        "commas between boxes": ("5", "\\boxed{6}" + "," * 100_000 + "\\boxed{7}"),
        "thousands": ("5", "1,111" * 40_000),
        "letters": ("5", "a" * 300_000),
    }
