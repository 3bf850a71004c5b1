"""Math-Verify as a verifier. It is the independent grader of audits and measurements.

Math-Verify is an optional extra. A hostile answer may make it hang, so run this verifier in a pool. The timeouts of
Math-Verify are switched off, because they use signals, which work only in a main thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from rewards.answers.find import answer_tag
from rewards.answers.thinking import without_thinking
from rewards.verdict import Verdict, correct, error, unparseable, wrong

_MISSING = "math-verify is not installed; install the extra with `pip install 'verigrpo[audit]'`"


class MathVerify:
    """Math-Verify's verdict on the text after the thinking, with its default settings but without its timeouts.

    Math-Verify knows boxes, dollar signs and "answer is", but not `<answer>` tags. So the content of the last tags is
    put into a box first.

    Raises:
        ValueError: math-verify is not installed.
    """

    def __init__(self) -> None:
        try:
            # The import takes seconds. It is done here, so that it does not use the time of a call.
            from math_verify import parse, verify
        except ModuleNotFoundError as problem:
            raise ValueError(_MISSING) from problem
        # Math-Verify warns at every call that its timeouts are off; the pool's deadline replaces them.
        for name in ("math_verify.parser", "math_verify.grader"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._parse, self._verify = parse, verify

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict. It is an `error` if Math-Verify cannot read the reference."""
        text = without_thinking(completion)
        if text is None:
            return unparseable("thinking never ended")
        gold = self._parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        if not gold:
            return error(f"math-verify cannot read the reference {str(reference)[:60]!r}")
        answer = self._parse(as_it_reads(text), parsing_timeout=None)
        if not answer:
            return unparseable("math-verify finds no answer")
        if self._verify(gold, answer, timeout_seconds=None):
            return correct()
        return wrong(f"math-verify read {str(answer[-1])[:80]!r}")


def as_it_reads(text: str) -> str:
    """The text with the content of its last `<answer>` tags in a box, because Math-Verify does not read tags."""
    tagged = answer_tag(text)
    if tagged is None or "\\boxed" in tagged or "$" in tagged:
        return text if tagged is None else tagged
    return f"\\boxed{{{tagged}}}"
