"""Language models on the rows of the text world, as a task of `DomainReweighting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from metaopt.data.weights_file import Example, content_hash
from metaopt.engine.protocols import Tree
from metaopt.problems.data_curation.language_models import NGramModels
from metaopt.problems.data_curation.languages import ALPHABET, encode
from metaopt.problems.data_curation.text_world import TextWorld


class TextRows:
    """R n-gram models on training rows of a text world; the meta-loss is that of its meta rows.

    Args:
        data: the rows.
        models: number R of models that are trained at once, >= 1.
        order, hidden: of the models; see `NGramModels`.
        stratified: whether meta batches hold each kind of meta rows in its share.
        device: where they live.

    Metrics: `test_loss`, the mean over models and test rows, in nats per character.
    """

    quality: Tensor | None = None
    resplit = 0.0
    hashed_columns = ("text",)
    text_columns = ("text",)

    def __init__(
        self,
        data: TextWorld,
        models: int = 4,
        order: int = 4,
        hidden: int = 32,
        stratified: bool = False,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.network = NGramModels(len(ALPHABET), order, hidden, models)
        self.domains, self.domain = data.domains, data.domain
        self.row_texts: Sequence[str] = data.texts
        self.examples = [
            Example(f"{data.domains[k]}-{i}", content_hash({"text": text}, ("text",)), "world", i)
            for i, (text, k) in enumerate(zip(data.texts, data.domain.tolist(), strict=True), 1)
        ]
        # What a score of rows is compared with: the less noise, the better.
        self.row_quality = -data.level
        self.unseen_texts, self.unseen_quality = data.unseen, -data.unseen_level
        self.meta_rows = len(data.meta)
        if stratified:
            self.meta_kinds = data.meta_kinds
        self._rows, self._meta, self._test = (
            encode(rows).to(self.device) for rows in (data.texts, data.meta, data.test)
        )

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return the models' parameters; there are no buffers."""
        return {k: v.to(self.device) for k, v in self.network.init(generator).items()}, {}

    def row_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the training losses, (R, B)."""
        return self.network.losses(tensors, self._rows[rows])

    def meta_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the meta-losses, (R, B)."""
        return self.network.losses(tensors, self._meta[rows])

    @torch.no_grad()
    def metrics(self, tensors: Tree) -> Mapping[str, float]:
        """Return the mean loss of the test rows."""
        return {"test_loss": float(self.network.losses(tensors, self._test).mean())}
