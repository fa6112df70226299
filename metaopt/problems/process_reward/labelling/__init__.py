"""Step labels by rollouts."""
