"""Reward models and how they are trained."""
