"""The policy as a model: attention, log-probabilities, adapters, floating-point operations, stored policies."""
