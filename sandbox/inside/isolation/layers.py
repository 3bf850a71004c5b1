"""Find out whether this machine allows a separate user and namespaces for the worker, and enter them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from sandbox.inside.isolation import kernel
from sandbox.types import Layer, MissingLayer

NAMESPACES = {
    Layer.USER_NAMESPACE: kernel.CLONE_NEWUSER,
    Layer.PROCESS_NAMESPACE: kernel.CLONE_NEWPID,
    Layer.NETWORK_NAMESPACE: kernel.CLONE_NEWNET,
    Layer.IPC_NAMESPACE: kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS,
    Layer.PRIVATE_ROOT: kernel.CLONE_NEWNS,
}
INNER_ID = 1000  # the only user and group in the user namespace
FIRST_OWN_UID = 0x60000000  # above the numbers of accounts and container runtimes; the process number is added
NO_CONTROL_GROUP = "delegate a control group with memory and pids (systemd: Delegate=yes and the program in a subgroup)"
_NO_NAMESPACES = (
    "allow user namespaces (sysctl user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0, "
    "or a container seccomp profile that permits unshare)"
)


class Layers:
    """The record of active layers, and of missing layers with the reason."""

    def __init__(self, without: frozenset[Layer]) -> None:
        self.without = without
        self.active: list[Layer] = []
        self.missing: list[MissingLayer] = []

    def wants(self, layer: Layer) -> bool:
        if layer in self.without:
            self.miss(layer, "switched off", "do not switch it off")
            return False
        return True

    def has(self, layer: Layer) -> bool:
        return layer in self.active

    def miss(self, layer: Layer, reason: str, remedy: str) -> None:
        self.missing.append(MissingLayer(layer, reason, remedy))


def possible_namespaces(layers: Layers) -> int:
    """The flags of those wanted namespaces that the kernel allows. A separate process tries them."""
    wanted = 0
    for layer, flag in NAMESPACES.items():
        if layers.wants(layer):
            wanted |= flag
    if not wanted & kernel.CLONE_NEWUSER:
        wanted = 0
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)  # programs never run as root
            kernel.unshare(wanted)
        except OSError as problem:
            os._exit(problem.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for layer, flag in NAMESPACES.items():
        if code == 0 and wanted & flag:
            layers.active.append(layer)
        elif layer not in layers.without:
            reason = os.strerror(code) if code else "it needs a user namespace"
            layers.miss(layer, f"the kernel refuses: {reason}", _NO_NAMESPACES)
    return wanted if code == 0 else 0


def own_uid(layers: Layers, unreadable: str = "") -> int | None:
    """Choose a user that no other process on the machine has. Return None if there is no such user.

    Args:
        layers: record for a missing layer.
        unreadable: the reason why no other user could run the interpreter; empty if another user can.
    """
    if os.geteuid() != 0:
        return None  # the supervisor is not privileged, so this layer does not count as missing
    if not layers.wants(Layer.OWN_UID):
        return None
    if unreadable:
        reason = f"another user could not read the interpreter in {sys.base_prefix}, and no copy could be made"
        remedy = "install Python where every user may read it, or run as another user than root"
        layers.miss(Layer.OWN_UID, f"{reason}: {unreadable}", remedy)
        return None
    uid = FIRST_OWN_UID + os.getpid()
    with open("/proc/self/uid_map") as table:
        mapped = [tuple(map(int, line.split())) for line in table]
    if not any(inside <= uid < inside + count for inside, _, count in mapped):
        first, _, count = max(mapped, key=lambda row: row[2])
        uid = first + count - 1 - os.getpid() % max(1, count // 2)
    if uid == 0:
        layers.miss(Layer.OWN_UID, "only one user is mapped into this container", "map a range of users")
        return None
    return uid


def become(uid: int, layers: Layers) -> None:
    """Give up root for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # the change of user cleared this attribute, which mapping users needs
    layers.active.append(Layer.OWN_UID)


def enter_namespaces(flags: int, proc: int) -> None:
    """Move into new namespaces; `proc` is a descriptor of `/proc`."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(flags)
    with contextlib.suppress(OSError):
        kernel.unshare(kernel.CLONE_NEWCGROUP)  # hides the host's paths in /proc/self/cgroup
    if flags & kernel.CLONE_NEWUTS:
        socket.sethostname("sandbox")
    map_user(uid, gid, proc)


def map_user(uid: int, gid: int, proc: int) -> None:
    """Map the user and group of the outer namespace into this process's new user namespace, as the only ones."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_ID} {uid} 1"),
        ("gid_map", f"{INNER_ID} {gid} 1"),
    ):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.encode())
        os.close(descriptor)
