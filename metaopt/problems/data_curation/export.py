"""Trained models as folders that transformers and TRL load."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from metaopt.engine.protocols import Tree
from metaopt.nn.export import check_scores, new_folder
from metaopt.nn.model_card import ModelCard
from metaopt.nn.transformers_model import AUTO, TransformersModel
from metaopt.problems.data_curation.objectives import Objective
from metaopt.problems.data_curation.sequences import Batch

TOLERANCE = {"float32": 1e-4, "master": 5e-2, "official": 5e-2}
"""By precision, of a loss: merged adapters are rounded once more."""


@torch.no_grad()
def export(
    model: TransformersModel, tensors: Tree, folder: Path, card: ModelCard,
    objective: Objective, probes: Batch,
) -> tuple[str, float]:  # fmt: skip
    """Write a model of transformers' own class, with its tokenizer, and read it back.

    Adapters are multiplied out. The tokenizer gets the pad token that the model was trained with.

    Args:
        model, tensors: what was trained.
        folder: a new or empty folder.
        card: what the README states.
        objective: whose losses of `probes` are compared.
        probes: rows.

    Returns:
        The name of the class, and the largest difference of a loss after reading it back.

    Raises:
        FileExistsError: the folder holds something.
        RuntimeError: a loss differs by more than 1e-4 (5e-2 in half precision), relative to losses
            above 1; the folder is left for inspection, without a card.
    """
    auto, outputs = AUTO[model.kind]
    with new_folder(folder, card) as folder:
        if model.tokenizer.pad_token_id is None:
            model.tokenizer.pad_token = model.tokenizer.eos_token
        model.tokenizer.save_pretrained(folder)
        model.merged(tensors).save_pretrained(folder)
        again = auto.from_pretrained(folder, attn_implementation="eager", **outputs).eval()
    expected = _losses(objective, model.logits(tensors, probes.inputs, False), probes)
    inputs = {k: v.cpu() for k, v in probes.inputs.items()}
    read = _losses(objective, again(**inputs).logits.to(probes.ids.device), probes)
    difference = check_scores(folder, expected, read, TOLERANCE[model.precision])
    name = type(again).__name__
    usage = f"""
from transformers import {auto.__name__}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = {auto.__name__}.from_pretrained(FOLDER)"""
    page = card.page(
        name, MEANING[model.kind], usage, ("metaopt",), {"library_name": "transformers"}
    )
    (folder / "README.md").write_text(page, encoding="utf-8")
    return name, difference


def _losses(objective: Objective, logits: Tensor, probes: Batch) -> Tensor:
    return objective.losses(logits.float(), probes).cpu()


MEANING = {
    "causal": "A language model, trained on rows that were weighted by what they do for others.",
    "sequence": "The reward of a prompt with an answer, one logit; larger is better.",
    "token": "Of the token at which a step of a solution ends, class 1 is a right step.",
}
