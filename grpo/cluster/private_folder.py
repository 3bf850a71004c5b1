"""A private folder of this user for files outside the run's folder: Ray's sockets, logs and token.

All users can write to `/tmp`. So a folder with a predictable name in `/tmp` is used only if this user owns it and
other users cannot open it.
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

# Longest path of a Unix socket, in bytes, and longest path that Ray appends to its folder, in bytes:
# /session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store
_LONGEST_SOCKET, _LONGEST_SESSION = 107, 66
_KEPT_DAYS = 7


def private_folder() -> Path:
    """Return the folder (mode 0700). All runs of this user share it.

    If another user has a folder of this name, return a new folder that is not shared.
    """
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
    """Return the file with Ray's token; make it if it is missing. All runs of this user share it."""
    path = folder / "token"
    if path.exists() and _is_ours(path, stat.S_ISREG):
        return path
    path.unlink(missing_ok=True)
    beside = folder / f"token.{secrets.token_hex(8)}"
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    # The link makes the whole file appear at once, and never replaces a token that another run has just read.
    with contextlib.suppress(FileExistsError):
        os.link(beside, path)
    beside.unlink()
    return path


def remove_old_sessions(ray: Path) -> None:
    """Remove old sessions from Ray's folder: their process has ended, and nothing was written for a week."""
    for session in ray.glob("session_*_*"):
        pid = session.name.rpartition("_")[2]
        if session.is_symlink() or not pid.isdigit() or Path("/proc", pid).exists():
            continue
        written = [path.stat().st_mtime for path in (session, *session.glob("logs/*")) if path.exists()]
        if max(written, default=time.time()) < time.time() - _KEPT_DAYS * 86_400:
            shutil.rmtree(session, ignore_errors=True)


def _is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    status = path.lstat()
    return is_kind(status.st_mode) and status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
