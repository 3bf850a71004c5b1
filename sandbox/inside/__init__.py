"""Code that runs in the worker and in the processes that it forks. `sandbox.outside` never imports this code."""
