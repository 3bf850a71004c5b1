"""The open resources of a training run, its checkpoints, and its recovery after a failure."""
