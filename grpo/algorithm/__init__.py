"""The algorithm as pure functions of tensors: advantages, losses, aggregation, packing."""
