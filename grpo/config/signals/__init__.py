"""Sections of the configuration for signals beyond the reward: the curriculum, the teacher."""
