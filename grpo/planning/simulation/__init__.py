"""A discrete-event model of the training loop."""
