"""A folder of this user's alone for what a run keeps outside of its own: Ray's sockets, logs and token.

`/tmp` is everybody's. A name in it that others can foresee is only used where it is already ours and closed to them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Longest path of a Unix socket, in bytes, and what Ray puts behind its folder:
# /session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store
_LONGEST_SOCKET, _LONGEST_SESSION = 107, 66
_KEPT_DAYS = 7


def private_folder() -> Path:
    """The folder, of mode 0700: the same for every run of this user, unless somebody else has taken its name."""
    places = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]
    for place in filter(None, places):
        folder = Path(place).absolute() / f"grpo-{os.getuid()}"
        longest = len(os.fsencode(folder.parent)) + len("/grpo-4294967295/ray") + _LONGEST_SESSION
        if longest <= _LONGEST_SOCKET and os.access(place, os.W_OK):
            break
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_ours(folder, stat.S_ISDIR):
        return Path(tempfile.mkdtemp(prefix="grpo-", dir=folder.parent))
    return folder


def token_file(folder: Path) -> Path:
    """The file with the token of Ray, which is made where there is none; all runs of this user share it."""
    path = folder / "token"
    if path.exists() and _is_ours(path, stat.S_ISREG):
        return path
    path.unlink(missing_ok=True)
    beside = folder / f"token.{secrets.token_hex(8)}"
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    # Whole or not at all, and never in place of what a run that starts at this moment has just read.
    with contextlib.suppress(FileExistsError):
        os.link(beside, path)
    beside.unlink()
    return path


def remove_old_sessions(ray: Path) -> None:
    """Remove what runs of long ago left behind in Ray's folder: those that wrote nothing for a week and are gone."""
    for session in ray.glob("session_*_*"):
        pid = session.name.rpartition("_")[2]
        if session.is_symlink() or not pid.isdigit() or Path("/proc", pid).exists():
            continue
        written = [path.stat().st_mtime for path in (session, *session.glob("logs/*")) if path.exists()]
        if max(written, default=time.time()) < time.time() - _KEPT_DAYS * 86_400:
            shutil.rmtree(session, ignore_errors=True)


def _is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    found = path.lstat()
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
