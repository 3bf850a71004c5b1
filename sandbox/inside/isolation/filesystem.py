"""A program's view of the file system: a private read-only root if mounts are possible, and Landlock rules.

Each worker builds its private root once, from read-only bind mounts. The root has four directories of the sandbox:

- `/scratch`: each cell mounts its own size-limited tmpfs on `/scratch/run`; `/tmp` and `/dev/shm` link to it.
- `/view`: each cell mounts its own `/proc` on `/view/proc`.
- `/slot`: the worker's `/proc`. The kernel allows a process to mount a `/proc` only if the process already sees one.
  The cell covers `/slot` before a program starts.
- `/site`: preloaded third-party modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox import visible
from sandbox.inside.isolation import kernel

if TYPE_CHECKING:
    import landlockpy

SCRATCH, SCRATCH_RUN = "/scratch", "/scratch/run"
VIEW, VIEW_PROC = "/view", "/view/proc"
SLOT_PROC = "/slot/proc"
SITE = "/site"
_READ_ONLY = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
_DEVICES = ("null", "zero", "full", "random", "urandom")
_WRITABLE_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


@dataclass(frozen=True, slots=True)
class SitePackage:
    """One file or directory of third-party modules that a preloaded module needs."""

    path: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def site_packages(top_level: Iterable[str]) -> list[SitePackage]:
    """Locate those modules of `top_level` that are imported and not in the standard library.

    The modules' shared libraries (`<name>.libs`) are listed too.
    """
    import sysconfig  # imported here because it takes about 100 pages, which no worker needs

    site_packages: dict[str, SitePackage] = {}
    standard = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    for name in top_level:
        module_file = getattr(sys.modules.get(name), "__file__", None)
        if not module_file:
            continue
        place = os.path.dirname(module_file) if os.path.basename(module_file).startswith("__init__.") else module_file
        real = os.path.realpath(place)
        if real.startswith(standard) and "site-packages" not in real:
            continue
        for path in (real, os.path.join(os.path.dirname(real), name + ".libs")):
            if os.path.exists(path):
                site_packages[path] = SitePackage(path)
    return list(site_packages.values())


def _bind_read_only(source: str, base: str, target: str) -> None:
    place = base + target
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "x"):
            pass
    kernel.mount(source, place, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.make_read_only(place, kernel.MOUNT_ATTR_NODEV)


def enter_private_root(base: str, packages: Sequence[SitePackage]) -> None:
    """Build the private root on the directory `base`, and enter it. Files in `base` are hidden, but not changed.

    The process must have its own mount namespace, and CAP_SYS_ADMIN in this namespace.
    """
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = visible.shown_paths()
    hidden = visible.hidden_paths(sources)
    # The sources may lie below `base` (for example an interpreter in /tmp), so they are mounted by descriptor.
    held = {path: os.open(path, os.O_PATH) for path in sources if not os.path.islink(path)}
    held_packages = {package.name: os.open(package.path, os.O_PATH) for package in packages}
    links = {path: os.readlink(path) for path in sources if os.path.islink(path)}
    held_proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    held_devices = {name: os.open("/dev/" + name, os.O_PATH) for name in _DEVICES if os.path.exists("/dev/" + name)}
    try:
        # 1 MiB and 512 inodes suffice: this tmpfs holds directories and links, no data.
        size = "size=1m,mode=755,nr_inodes=512"
        kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
        for path, target in links.items():
            os.makedirs(base + os.path.dirname(path), exist_ok=True)
            os.symlink(target, base + path)
        for path, descriptor in held.items():
            _bind_read_only(f"/proc/self/fd/{descriptor}", base, path)
        for path in hidden:
            if os.path.isdir(base + path):
                kernel.mount("tmpfs", base + path, "tmpfs", _READ_ONLY, "size=4k,nr_inodes=1,mode=555")
        for name, descriptor in held_packages.items():
            _bind_read_only(f"/proc/self/fd/{descriptor}", base, f"{SITE}/{name}")
        for directory in ("/dev", SCRATCH_RUN, VIEW_PROC, SLOT_PROC):
            os.makedirs(base + directory, exist_ok=True)
        for name, descriptor in held_devices.items():
            with open(f"{base}/dev/{name}", "x"):
                pass
            kernel.mount(f"/proc/self/fd/{descriptor}", f"{base}/dev/{name}", None, kernel.MS_BIND)
            kernel.make_read_only(f"{base}/dev/{name}")  # the device stays writable, but its times do not change
        kernel.mount(f"/proc/self/fd/{held_proc}", base + SLOT_PROC, None, kernel.MS_BIND | kernel.MS_REC)
        _link_well_known_places(base)
        os.chdir(base)
        kernel.pivot_root_here()
        kernel.mount(None, "/", None, kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)
    finally:
        for descriptor in (*held.values(), *held_packages.values(), *held_devices.values(), held_proc):
            os.close(descriptor)


def _link_well_known_places(base: str) -> None:
    os.symlink("/proc/self/fd", base + "/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{base}/dev/{name}")
    for link, target in (("/dev/shm", SCRATCH_RUN), ("/tmp", SCRATCH_RUN), ("/proc", VIEW_PROC)):
        if not os.path.lexists(base + link):
            os.symlink(target, base + link)


def mount_scratch(size_bytes: int, files: int) -> None:
    """Give this mount namespace a fresh, empty scratch directory."""
    options = f"size={size_bytes},mode=700,nr_inodes={files + 1}"
    kernel.mount("tmpfs", SCRATCH_RUN, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def mount_proc(target: str, processes_only: bool = False) -> None:
    """Mount the `/proc` of this process namespace.

    Args:
        target: directory to mount on.
        processes_only: from Linux 5.8 on, show only processes that the reader may inspect, and nothing of the machine.
    """
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    if processes_only:
        try:
            kernel.mount("proc", target, "proc", flags, "subset=pid,hidepid=invisible")
            return
        except OSError:
            pass  # an older kernel does not know these options
    kernel.mount("proc", target, "proc", flags)


def hide_slot_proc() -> None:
    """Cover the worker's `/proc`, so that a program sees its own processes only."""
    kernel.mount("tmpfs", SLOT_PROC, "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k,mode=000")


def landlock_rules(private_root: bool, scratch: str, packages: Sequence[SitePackage]) -> landlockpy.Ruleset:
    """The rules for every program of a worker: it may read what it needs, and write to its scratch directory.

    Raises:
        landlockpy.UnsupportedError: the kernel has no Landlock.
    """
    import landlockpy  # imported here because, with its own imports, it takes 500 pages

    access = landlockpy.AccessFS
    read = access.READ_FILE | access.READ_DIR | access.EXECUTE
    rules = landlockpy.Ruleset(scoped=landlockpy.Scope.ABSTRACT_UNIX_SOCKET | landlockpy.Scope.SIGNAL)
    shown = visible.shown_paths()
    if private_root:  # the private root contains nothing else, and hidden paths are covered
        readable = [*shown, SITE]
    else:
        readable = [*_without(shown, visible.hidden_paths(shown)), *(package.path for package in packages)]
        # Every import lists the names in this directory, even the import of a third-party module.
        rules.allow_path(visible.standard_library(), access.READ_DIR)
    for path in readable:
        if os.path.isdir(path):
            rules.allow_path(path, read)
        elif os.path.exists(path):
            rules.allow_path(path, access.READ_FILE | access.EXECUTE)
    for name in _DEVICES:
        path = "/dev/" + name
        if os.path.exists(path):
            write = access.WRITE_FILE | access.TRUNCATE if path in _WRITABLE_DEVICES else access(0)
            rules.allow_path(path, access.READ_FILE | write)
    # A rule on the directory above a mount point also holds for later mounts.
    writable = SCRATCH if private_root else scratch
    rules.allow_path(writable, rules.handled_fs & ~(access.MAKE_CHAR | access.MAKE_BLOCK | access.IOCTL_DEV))
    if private_root:
        rules.allow_path(VIEW, read)
        rules.allow_path("/dev", access.READ_DIR)
    return rules


def _without(paths: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """Leave `hidden` out of `paths`.

    A rule covers a whole directory. So a directory that contains hidden paths is replaced by its other entries.
    """
    result: list[str] = []
    for path in paths:
        real = os.path.realpath(path)
        if real in hidden:
            continue
        if any(other.startswith(real + "/") for other in hidden):
            entries = [entry.path for entry in os.scandir(real) if not entry.is_symlink()]
            result += _without(sorted(entries), hidden)
        else:
            result.append(path)
    return result
