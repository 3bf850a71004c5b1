"""The training loop as a discrete-event model."""
