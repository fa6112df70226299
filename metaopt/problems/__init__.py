"""Problems: one file each, named for what it is."""
