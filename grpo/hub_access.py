"""Whether the Hugging Face hub answers: asked once in a process, before a library would try for minutes."""

from __future__ import annotations

import functools
import os
import ssl
import sys
import urllib.error
import urllib.request

# Longest wait for an answer, in seconds.
_WAIT_S = 5.0
# Where to read what a machine without a network needs.
PAGE = "docs/offline.md"


@functools.cache
def why_offline() -> str:
    """Return why only the hub's cache can be read; the empty text if the hub answers.

    If the hub does not answer, this process and the processes that it starts read only the cache, as with
    `HF_HUB_OFFLINE=1`. Otherwise the libraries would ask for each file six times, with 24 s of waiting in between.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set, so only the hub's cache was read (HF_HOME)"
    problem = _problem_of(constants.ENDPOINT)
    if not problem:
        return ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Libraries that are already imported have read the variable.
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        import datasets

        datasets.config.HF_HUB_OFFLINE = True
    return f"{constants.ENDPOINT} does not answer from here ({problem}), so only the hub's cache was read (HF_HOME)"


def _problem_of(address: str) -> str:
    """Return why a server cannot be reached; the empty text if it answers, whatever it says."""
    if any(url.startswith("socks") for url in urllib.request.getproxies().values()):
        return ""  # This client cannot use such a proxy; the libraries can.
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_WAIT_S).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as failure:
        reason = getattr(failure, "reason", failure)
        # Somebody answers. The libraries may have other certificates than this client.
        return "" if isinstance(reason, ssl.SSLError) else str(reason)
    return ""
