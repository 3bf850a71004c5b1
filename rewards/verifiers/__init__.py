"""The built-in verifiers, one file each, and where they look for an answer."""
