"""Ray: placement, actors, groups of actors, and detection of lost actors. Only this package imports Ray."""
