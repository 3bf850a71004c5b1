"""Make the learner's sender for a transport. Ray's object store needs no sender.

Every rank has a sender, because all ranks take part in the gathering. With `gloo` and `nccl`, only rank 0 sends bytes.
"""

from __future__ import annotations

from grpo.weights.gloo_sender import GlooSender
from grpo.weights.patches import PatchWriter
from grpo.weights.sender import GroupTransport, Sender
from grpo.weights.source import PolicyWeights


def make_sender(transport: GroupTransport, weights: PolicyWeights, rank: int, patches: PatchWriter) -> Sender:
    """Return the sender of a rank; `patches` writes the changes of a sparse bucket."""
    if transport == "gloo":
        return GlooSender(weights, rank, patches)
    from grpo.weights.gpu_senders import IpcSender, NcclSender

    return NcclSender(weights, rank) if transport == "nccl" else IpcSender(weights, rank)
