"""Whether two expressions have the same value, within a bound of work."""
