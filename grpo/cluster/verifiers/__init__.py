"""Verifier pools on the nodes of a Ray cluster."""
