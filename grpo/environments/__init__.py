"""What answers the policy in a conversation: tools and environments, each conversation in a process of its own."""
