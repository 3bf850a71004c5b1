"""`grpo check --cluster`: what every node must be able to do, tried on each of them."""
