"""One vLLM engine, and the thread that owns it."""
