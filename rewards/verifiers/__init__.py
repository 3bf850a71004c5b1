"""The built-in verifiers, one file each."""
