"""The page of `grpo view`."""
