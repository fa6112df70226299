"""Preference pairs, as features and as texts."""
