"""Scorers of steps."""
