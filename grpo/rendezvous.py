"""How the learner's ranks meet: through a store that listens on one address alone."""

from __future__ import annotations

import socket

from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]


def meet(backend: str, rank: int, world_size: int, address: str, port: int) -> None:
    """Join the other ranks in torch's default process group, unless this process has. Blocks until all have come.

    Args:
        backend: `gloo` or `nccl`.
        rank: of this process; 0 serves the store.
        world_size: how many there are.
        address: of the first rank's node, as the others reach it.
        port: a free one on it.
    """
    if distributed.is_initialized():
        return
    listener = socket.create_server((address, port)).detach() if rank == 0 else None
    # Left to itself torch listens on every address of the machine, and the store asks nobody who he is.
    store = TCPStore(address, port, world_size, is_master=rank == 0, master_listen_fd=listener)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
