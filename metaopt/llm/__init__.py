"""Language models behind one client: requests and replies, failures, budgets, cassettes."""

from metaopt.llm.chat import (
    LM,
    Likelihood,
    Message,
    Parameters,
    Reply,
    Request,
    Usage,
    estimate,
    user,
)
from metaopt.llm.client import Client
from metaopt.llm.errors import (
    BudgetSpent,
    CassetteMiss,
    LMError,
    NotUnderstood,
    PolicyRefusal,
    Rejected,
    Transient,
    Truncated,
    Unsupported,
)
from metaopt.llm.simulated import SimulatedLM

__all__ = [
    "LM",
    "BudgetSpent",
    "CassetteMiss",
    "Client",
    "LMError",
    "Likelihood",
    "Message",
    "NotUnderstood",
    "Parameters",
    "PolicyRefusal",
    "Rejected",
    "Reply",
    "Request",
    "SimulatedLM",
    "Transient",
    "Truncated",
    "Unsupported",
    "Usage",
    "estimate",
    "user",
]
