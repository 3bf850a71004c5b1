"""A vLLM engine, and the thread that drives it."""
