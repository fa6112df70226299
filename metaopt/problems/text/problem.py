"""A problem whose outer variable is a text and whose questions go to a client, with its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from metaopt.engine.protocols import Problem, Records
from metaopt.llm import Client


class TextTrial(Protocol):
    """A text that has been tried, as `metaopt.optimizers.Search` keeps it."""

    @property
    def outer(self) -> str:
        """The text."""

    @property
    def value(self) -> float:
        """Its loss."""

    @property
    def artifacts(self) -> Any:
        """What its inner run has left."""


class Answers(Records):
    """The answers of the language models, kept next to the run's folder.

    Args:
        client: what is charged.
        examiner: a second client, which charges nothing, or `None`.
        authorisation: see `metaopt.engine.protocols.Records`.

    Attributes:
        folder: the run's, or `None` before the run.
    """

    def __init__(
        self,
        client: Client,
        examiner: Client | None = None,
        authorisation: Mapping[str, str] | None = None,
    ) -> None:
        self.client, self.examiner, self.authorisation = client, examiner, authorisation
        self.folder: Path | None = None

    def open(self, folder: Path) -> None:
        """Keep texts and answers next to the run's folder."""
        self.client.open(folder)
        self.folder = folder

    def spent(self) -> Mapping[str, float]:
        """Return what the run was charged, after the last outer step included."""
        return self.client.spent()

    def close(self) -> None:
        """Close the files of both clients."""
        self.client.close()
        if self.examiner is not None:
            self.examiner.close()


class TextProblem(Problem):
    """A problem whose language models are asked through one client, whose answers are its records.

    Args:
        client: the language models; what is paid for is in its records.
        examiner: a second client, which charges nothing, or `None`.
        authorisation: of the models, for the records.
    """

    records: Answers

    def __init__(
        self,
        client: Client,
        examiner: Client | None = None,
        authorisation: Mapping[str, str] | None = None,
    ) -> None:
        self.client, self.examiner = client, examiner
        self.records = Answers(client, examiner, authorisation)
