"""Q-networks and world models, many at a time."""
