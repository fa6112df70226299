"""A simulated world of known truth."""
