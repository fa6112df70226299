"""Scalar rewards of texts: a linear head on any transformers model.

This file is copied next to the weights of a model that transformers has no class for, so it imports
nothing but torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("last", "mean", "last_not_pad")


class RewardModelConfig(PretrainedConfig):
    """Configuration of a `RewardModel`.

    Args:
        backbone: configuration of the backbone as a dict; `None` only where transformers makes a
            default configuration to compare with.
        pooling: last, mean or last_not_pad.
        kwargs: what every configuration of transformers takes.
    """

    model_type = "metaopt_reward_model"

    def __init__(
        self, backbone: dict[str, Any] | None = None, pooling: str = "last", **kwargs: Any
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
        self.backbone = backbone or {}
        self.pooling = pooling
        kwargs.setdefault("id2label", {0: "reward"})
        kwargs.setdefault("label2id", {"reward": 0})
        kwargs.setdefault("problem_type", "regression")
        super().__init__(**kwargs)


class RewardModel(PreTrainedModel):
    """r(x) = w . pool(h(x)): a reward of the text x, larger for a better one.

    h are the last hidden states of the backbone, and pool takes the one of the last token, or the
    mean over tokens. Which tokens are real is read from the attention mask alone, so a pad token
    that is also the end-of-text token is not a special case; and they are moved to the front before
    the backbone sees them, so that neither the side of the padding nor the other texts of a batch
    change a score. There is no bias: Bradley-Terry's loss is blind to it.

    The pooling last_not_pad takes the last token whose id is not the pad token's, as transformers'
    own classes do: another one than last where texts end in a token that also pads.

    A backbone's own pooler is removed, as its parameters would have no gradient.

    Args:
        config: the configuration.
        backbone: a model that is there already, or `None` to make one with random weights.
    """

    config_class = RewardModelConfig
    base_model_prefix = "backbone"

    def __init__(self, config: RewardModelConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            backbone = AutoModel.from_config(
                AutoConfig.for_model(**config.backbone), attn_implementation="eager"
            )
        if "pooler" in dict(backbone.named_children()):
            backbone.pooler = None
        self.backbone = backbone
        width = backbone.config.get_text_config().hidden_size
        self.score = nn.Linear(width, 1, bias=False, dtype=backbone.dtype)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def on(
        cls,
        source: str | Path | PretrainedConfig | PreTrainedModel,
        pooling: str = "last",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> RewardModel:
        """Return a reward model with a new head on a backbone.

        The head's weights are normal with variance 1 / (width + 1), so that rewards have the size
        of one coordinate of the hidden states: at 0, what depends on their differences would have
        no gradient.

        Attention is "eager", which can be differentiated twice; a given model keeps its own.
        Weights are read from safetensors only, and code of the hub is never run.

        Args:
            source: a local folder, an id of the hub, a configuration (random weights), or a model,
                which is taken over, not copied, without its language-modelling head.
            pooling: last (of a causal language model), mean (of an encoder), or last_not_pad.
            seed: what random weights are drawn from.
            dtype: of the weights.

        Raises:
            ValueError: an unknown pooling, or last_not_pad without a pad token.
            OSError: there is no such folder or model.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone: Any
            how: dict[str, Any] = {
                "attn_implementation": "eager", "dtype": dtype, "trust_remote_code": False
            }  # fmt: skip
            if isinstance(source, PreTrainedModel):
                backbone = source.base_model.to(dtype)
            elif isinstance(source, PretrainedConfig):
                backbone = AutoModel.from_config(source, **how)
            else:
                backbone = AutoModel.from_pretrained(source, use_safetensors=True, **how)
            text = backbone.config.get_text_config()
            if pooling == "last_not_pad" and text.pad_token_id is None:
                raise ValueError("last_not_pad needs a configuration with a pad_token_id.")
            config = RewardModelConfig(
                backbone=backbone.config.to_dict(),
                pooling=pooling,
                pad_token_id=text.pad_token_id,
                eos_token_id=text.eos_token_id,
            )
            return cls(config, backbone)

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.score:
            nn.init.normal_(module.weight, std=(module.weight.shape[1] + 1) ** -0.5)

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the pooled hidden states (B, width) of token ids (B, T).

        Args:
            input_ids: token ids, padded on either side.
            attention_mask: 1 for a real token and 0 for padding; `None` to call padding what has
                the id of the pad token.

        Raises:
            ValueError: a text without tokens, a mask of another shape, or no mask where padding
                cannot be told from text.
        """
        mask = self._mask(input_ids, attention_mask)
        lengths = mask.sum(1)
        if not bool(lengths.all()):
            rows = (lengths == 0).nonzero().flatten().tolist()
            raise ValueError(f"texts {rows} of the batch have no token, so there is no reward.")
        longest = int(lengths.max())
        # Padding on the left would move positions, and with them the reward of the same text.
        front = mask.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        mask = mask.gather(1, front)
        filler = self.config.pad_token_id or 0
        ids = input_ids.gather(1, front).masked_fill(~mask, filler)
        hidden = self.backbone(input_ids=ids, attention_mask=mask.to(ids.dtype)).last_hidden_state
        if self.config.pooling == "mean":
            total: Tensor = hidden.masked_fill(~mask[..., None], 0).sum(1)
            return total / lengths[:, None].to(hidden)
        places = torch.arange(longest, device=ids.device)
        read = mask if self.config.pooling == "last" else mask & (ids != self.config.pad_token_id)
        last: Tensor = hidden[torch.arange(len(ids), device=ids.device), (places * read).argmax(1)]
        return last

    def rewards(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the rewards (B,); see `features`."""
        result: Tensor = self.score(self.features(input_ids, attention_mask)).squeeze(-1)
        return result

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool | None = None,
        margin: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return the rewards as logits (B, 1), as sequence classifiers of transformers do.

        Args:
            input_ids, attention_mask: see `features`.
            token_type_ids, use_cache: ignored: a text is one segment, read once.
            margin: ignored: TRL's trainer gives the model every column of its batch.
        """
        return SequenceClassifierOutput(logits=self.rewards(input_ids, attention_mask)[:, None])

    def _mask(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            if mask.shape != ids.shape:
                raise ValueError(
                    f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}; got "
                    f"{tuple(mask.shape)}."
                )
            return mask.bool()
        pad, ends = self.config.pad_token_id, self.config.eos_token_id
        if len(ids) == 1 or pad is None:
            if len(ids) > 1:
                raise ValueError(
                    "rewards of a batch need an attention_mask: there is no pad token."
                )
            return torch.ones_like(ids, dtype=torch.bool)
        if pad in (ends if isinstance(ends, list) else [ends]):
            raise ValueError(
                f"rewards of a batch need an attention_mask: the pad token {pad} also ends texts."
            )
        result: Tensor = ids != pad
        return result
