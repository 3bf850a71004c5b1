"""Conversations as tokens: what the policy sampled is never rendered or tokenised again."""
