"""How the learner's ranks meet: through a store that listens on one address alone."""

from __future__ import annotations

import datetime
import socket

from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

# Torch's own.
_STORE_LIMIT = datetime.timedelta(seconds=300)


def meet(backend: str, rank: int, world_size: int, address: str, port: int, deadline_s: float | None = None) -> None:
    """Join the other ranks in torch's default process group, unless this process has. Blocks until all have come.

    Args:
        backend: `gloo` or `nccl`.
        rank: of this process; 0 serves the store.
        world_size: how many there are.
        address: of the first rank's node, as the others reach it.
        port: a free one on it.
        deadline_s: longest wait for the others, and for a collective; torch's own by default.
    """
    if distributed.is_initialized():
        return
    listener = socket.create_server((address, port)).detach() if rank == 0 else None
    # Left to itself torch listens on every address of the machine, and the store asks nobody who he is.
    limit = None if deadline_s is None else datetime.timedelta(seconds=deadline_s)
    store = TCPStore(
        address, port, world_size, is_master=rank == 0, master_listen_fd=listener, timeout=limit or _STORE_LIMIT
    )
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
