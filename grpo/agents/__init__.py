"""Agents with a client of their own: an OpenAI-style server over the policy, and the user's programs that call it."""
