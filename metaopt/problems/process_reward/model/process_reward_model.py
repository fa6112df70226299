"""A classifier of tokens on any transformers model, for backbones that have none of their own.

This file is copied next to the weights of such a model, so it imports nothing but torch and
transformers, and keeps its name: exported models name it in `auto_map`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class ProcessRewardModelConfig(PretrainedConfig):
    """Configuration of a `ProcessRewardModel`.

    Args:
        backbone: configuration of the backbone as a dict; `None` only where transformers makes a
            default configuration to compare with.
        kwargs: what every configuration of transformers takes.
    """

    model_type = "metaopt_process_reward_model"

    def __init__(self, backbone: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.backbone = backbone or {}
        super().__init__(**kwargs)


class ProcessRewardModel(PreTrainedModel):
    """Logits (wrong, right) of every token: W h + b, h the last hidden states of the backbone.

    Args:
        config: the configuration.
        backbone: a model, or `None` to make one with random weights.
    """

    config_class = ProcessRewardModelConfig
    base_model_prefix = "backbone"

    def __init__(
        self, config: ProcessRewardModelConfig, backbone: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        if backbone is None:
            backbone = AutoModel.from_config(
                AutoConfig.for_model(**config.backbone), attn_implementation="eager"
            )
        if "pooler" in dict(backbone.named_children()):
            backbone.pooler = None
        self.backbone = backbone
        self.score = nn.Linear(backbone.config.get_text_config().hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **inputs: Any) -> TokenClassifierOutput:
        """Return logits (B, T, 2) of token ids (B, T) and whatever else the backbone takes."""
        hidden = self.backbone(input_ids=input_ids, **inputs).last_hidden_state
        return TokenClassifierOutput(logits=self.score(hidden.to(self.score.weight.dtype)))
