"""Rewards of texts by a saved reward model, metaopt's or any with one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer

from metaopt.nn.positions import positions
from metaopt.problems.reward_model.data.dialogue import TURN, conversation, plain
from metaopt.problems.reward_model.data.pair import Pair
from metaopt.problems.reward_model.model.export import load
from metaopt.problems.reward_model.model.reward_model import RewardModel
from metaopt.problems.reward_model.model.tokens import read_texts


class Scorer:
    """Rewards by a saved model.

    A model with a linear head on the last token is read as a `RewardModel`, whose rewards depend
    neither on the batch nor on padding; any other one with a single output as it is.

    Args:
        source: folder or id of the hub; weights are read from safetensors only, and code of the hub
            is never run.
        batch: texts scored at once, >= 1.
        max_length: most tokens of a text, whose beginning is cut, see `encode`; `None` for what
            the tokenizer and the model take.
        device: such as cpu or cuda.

    Attributes:
        cut: number of texts that were cut so far.

    Raises:
        ValueError: a model with several outputs or without weights of its own for one, a device
            that is not there, or a number out of its range.
        OSError: there is no such model.
    """

    def __init__(
        self, source: str, batch: int = 8, max_length: int | None = None, device: str = "cpu"
    ) -> None:
        if batch < 1 or (max_length is not None and max_length < 1):
            raise ValueError(f"scoring needs batch, max_length >= 1; got {batch}, {max_length}.")
        check_device(device)
        model: Any = load(source)
        self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if (
            not isinstance(model, RewardModel)
            and model.config.get_text_config().pad_token_id is None
        ):
            batch = 1
        config = model.base_model.config.get_text_config()
        self._model = model.to(device).eval()
        self._batch, self._device, self.cut = batch, device, 0
        limits = [self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
        limits += [positions(model), max_length]
        self._limit = min(limit for limit in limits if limit is not None)

    def __call__(self, texts: Sequence[str], templated: bool = False) -> list[float]:
        """Return the rewards of texts.

        Args:
            texts: prompt + answer; one or more.
            templated: they come from a chat template, which has added the special tokens.
        """

        def rewards(ids: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask).logits
            return logits[:, 0].float()

        scores, cut = read_texts(
            rewards, self.tokenizer, texts, self._batch, self._device, self._limit, templated
        )
        self.cut += cut
        values: list[float] = scores.tolist()
        return values

    def texts(self, pair: Pair, chat: bool = False) -> tuple[str, str]:
        """Return what is read of the chosen and of the rejected answer, prompt included.

        Args:
            pair: the pair.
            chat: in the tokenizer's chat template; or else as HH-RLHF writes dialogues, in which a
                plain prompt without its markers is what the user says. A pair without a prompt has
                it in its answers, which stay as they are.

        Raises:
            ValueError: a tokenizer without a template, or one that refuses the dialogue.
        """
        if not chat:
            bare = isinstance(pair.prompt, str) and pair.prompt and not TURN.search(pair.prompt)
            written = plain(conversation(pair) if bare else pair)
            return f"{written.prompt}{written.chosen}", f"{written.prompt}{written.rejected}"
        if self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template; leave --chat away.")
        dialogue = conversation(pair)
        sides = [
            [m._asdict() for m in (*dialogue.prompt, *s)]
            for s in (dialogue.chosen, dialogue.rejected)
        ]
        try:
            one, other = (
                str(self.tokenizer.apply_chat_template(side, tokenize=False)) for side in sides
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template refuses the dialogue of row {pair.row}: {error}; leave --chat "
                f"away or the row out."
            ) from error
        return one, other


def check_device(device: str) -> None:
    """Raise a ValueError where torch cannot use a device."""
    try:
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"device={device} cannot be used here ({why}); use cpu.") from None
