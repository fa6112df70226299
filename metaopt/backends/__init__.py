"""Other engines that run a metaopt problem."""
