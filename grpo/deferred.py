"""Import a large library only when it is used, so that commands that do not need it answer at once.

For example, a module with functions that need torch has these lines:

    if TYPE_CHECKING:
        import torch
    else:
        torch = deferred("torch")
"""

from __future__ import annotations

import importlib
from typing import Any


class _Deferred:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def deferred(name: str) -> Any:
    """Return a stand-in for a module. The first use of an attribute imports the module.

    Args:
        name: name of the module, with dots if it is inside a package.
    """
    return _Deferred(name)
