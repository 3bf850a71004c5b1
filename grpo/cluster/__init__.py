"""Ray: placement, actors, groups of actors, and what notices that one is lost. The only wing that imports Ray."""
