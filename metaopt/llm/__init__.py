"""Language models: what is asked, what it costs, and what is kept."""

from metaopt.llm.chat import LM, Message, Parameters, Reply, Request, Usage, estimate, user
from metaopt.llm.client import Client
from metaopt.llm.errors import (
    BudgetSpent,
    CassetteMiss,
    LMError,
    PolicyRefusal,
    Rejected,
    Transient,
    Truncated,
)
from metaopt.llm.scores import parse_score
from metaopt.llm.simulated import SimulatedLM

__all__ = [
    "LM",
    "BudgetSpent",
    "CassetteMiss",
    "Client",
    "LMError",
    "Message",
    "Parameters",
    "PolicyRefusal",
    "Rejected",
    "Reply",
    "Request",
    "SimulatedLM",
    "Transient",
    "Truncated",
    "Usage",
    "estimate",
    "parse_score",
    "user",
]
