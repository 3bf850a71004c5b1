"""What a training run holds open, how it is saved, and how it goes on after a failure."""
