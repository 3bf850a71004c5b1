"""Connect the learner's ranks to each other, through a store that listens on one address only."""

from __future__ import annotations

import datetime
import socket

from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

# torch's default for the longest wait for the store.
_STORE_LIMIT = datetime.timedelta(seconds=300)


def meet(backend: str, rank: int, world_size: int, address: str, port: int, deadline_s: float | None = None) -> None:
    """Join torch's default process group, unless this process is already in it. Block until all ranks have joined.

    Args:
        backend: `gloo` or `nccl`.
        rank: number of this process; rank 0 serves the store.
        world_size: number of ranks.
        address: address of rank 0's node, which the other ranks can reach.
        port: free port on rank 0's node.
        deadline_s: longest wait for the other ranks and for a collective, in seconds; None for torch's default.
    """
    if distributed.is_initialized():
        return
    listener = socket.create_server((address, port)).detach() if rank == 0 else None
    # By default, torch's store listens on every address of the machine and accepts every client.
    limit = None if deadline_s is None else datetime.timedelta(seconds=deadline_s)
    store = TCPStore(
        address, port, world_size, is_master=rank == 0, master_listen_fd=listener, timeout=limit or _STORE_LIMIT
    )
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
