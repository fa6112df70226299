"""Files of runs: written whole or not at all, read or named as damaged, used by one process."""
