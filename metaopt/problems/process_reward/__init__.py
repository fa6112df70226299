"""Process reward models, as a task of domain reweighting."""
