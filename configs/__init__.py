"""The shipped configuration: one YAML per choice, installed as `metaopt.configs`."""
