"""The configurations of the jobs that learn from rows without sampling: supervised fine-tuning and preferences."""
