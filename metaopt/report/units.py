"""What tables call the units of the ledger."""

WORDS = {
    "inner_steps": "inner steps",
    "gradients": "gradients",
    "hvps": "products",
    "evaluations": "evaluations",
    "environment_steps": "environment steps",
    "lm_calls": "model calls",
    "tokens": "tokens",
}
"""Words by unit of `metaopt.engine.budget.UNITS`, in a table's order; products are with a second
derivative."""
