"""The learner's end of a push: one sender for each transport that does not go through Ray's object store.

Every rank has a sender, as all take part in the gathering; what leaves through the group leaves from rank 0 alone.
"""

from __future__ import annotations

from grpo.weights.gloo_sender import GlooSender
from grpo.weights.patches import PatchWriter
from grpo.weights.sender import GroupTransport, Sender
from grpo.weights.source import PolicyWeights


def make_sender(transport: GroupTransport, weights: PolicyWeights, rank: int, patches: PatchWriter) -> Sender:
    """The sender of a rank; `patches` makes what it sends of a bucket that is sparse."""
    if transport == "gloo":
        return GlooSender(weights, rank, patches)
    from grpo.weights.gpu_senders import IpcSender, NcclSender

    return NcclSender(weights, rank) if transport == "nccl" else IpcSender(weights, rank)
