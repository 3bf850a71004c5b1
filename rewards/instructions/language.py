"""The language of a text, by langdetect (extra `ifeval`)."""

from __future__ import annotations

import functools
from typing import Any

# langdetect reads no more than this.
_MOST_CHARACTERS = 10_000
MISSING = "needs the package langdetect: pip install 'verigrpo[ifeval]'"


@functools.cache
def detector_factory() -> Any:
    """Load langdetect's tables, which takes seconds; None if it is not installed."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ModuleNotFoundError:
        return None
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    # Without a seed, langdetect may give the same text another language in the next call.
    factory.seed = 0
    return factory


def language_of(text: str) -> str:
    """Return the code of a text's language, such as `en`; empty if the text has no features of any language.

    Raises:
        ValueError: langdetect is not installed.
    """
    factory = detector_factory()
    if factory is None:
        raise ValueError(f"the language of a text {MISSING}")
    from langdetect.lang_detect_exception import LangDetectException

    detector = factory.create()
    detector.append(text[:_MOST_CHARACTERS])
    try:
        return str(detector.detect())
    except LangDetectException:
        return ""
