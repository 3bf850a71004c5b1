"""A vLLM engine, and the thread that runs it."""
