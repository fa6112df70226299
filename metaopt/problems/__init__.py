"""Problems: one folder a family."""
