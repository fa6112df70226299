"""Dyna (Sutton, 1990) with deep Q-networks and learned world models, R runs batched."""
