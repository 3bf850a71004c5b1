"""Start `grpo`: on this machine, through Slurm, on Kubernetes, or as a job of a Ray cluster."""
