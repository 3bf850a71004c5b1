"""`grpo check --cluster`: test on every node the features that a job needs."""
