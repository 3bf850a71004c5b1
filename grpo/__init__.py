"""VeriGRPO: reinforcement learning from verifiable rewards."""
