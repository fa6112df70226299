"""A language model of 2 layers, small enough for tests, and what trains it."""

from functools import partial

from metaopt.engine.inner_optimizers import AdamW
from metaopt.nn.transformers_model import TransformersModel
from metaopt.problems.meta_policy_optimization.text_policy import NoticeWorld, TextPolicy

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def notice_policy(world=None, model=None, **options):
    world = world or NoticeWorld(queries=2)
    defaults = {
        "teaching_steps": 40, "evaluation": 8, "group_size": 4, "queries_per_update": 2,
        "max_tokens": 24, "inner_optimizer": AdamW(lr=1e-3),
    }  # fmt: skip
    model = partial(TransformersModel, **{"source": LLAMA, "attention": "sdpa", **(model or {})})
    return TextPolicy(world, model, **(defaults | options))
