"""Problems: one folder per family."""
