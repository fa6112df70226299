"""A prompt that responses have in common is read once, and nothing else changes."""

import pytest
import torch
from tiny_text_policy import notice_policy
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from metaopt.problems.meta_policy_optimization.text_policy import NoticeWorld

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 32, "initializer_range": 0.2,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": 8}
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
GROUPS = [0, 0, 0, 1, 1, 1]


class UnequalQueries(NoticeWorld):
    """The second query is shorter than the first, so that its prompts are padded."""

    def __init__(self):
        super().__init__(queries=2)
        self._words = super().words()
        self.queries = [self.queries[0], "Write a notice ."]

    def words(self):
        return self._words


def policy_of(source=LLAMA, **model):
    model = {"source": source, **model}
    return notice_policy(UnequalQueries(), model, teaching_steps=0, max_tokens=6, evaluation=1)


def drawn(policy, dtype=torch.float32):
    """Weights that are not the first ones, so that adapters do something."""
    policy.model._module.to(dtype)
    draw = torch.Generator().manual_seed(0)
    return {
        name: value.to(dtype) + 0.1 * torch.randn(value.shape, generator=draw, dtype=dtype)
        for name, value in policy.model.init().items()
    }


@pytest.mark.parametrize(
    ("source", "attention"), [(LLAMA, "sdpa"), (GPT2, "eager")], ids=["llama", "gpt2"]
)
def test_responses_and_their_log_probabilities_are_those_of_whole_prompts(source, attention):
    policy = policy_of(source, attention=attention)
    weights = drawn(policy)
    shared = policy.respond(weights, GROUPS, key=3)
    log_p = policy.responder.log_p(weights, shared)
    policy.model._keeps_prefixes = False
    whole = policy.respond(weights, GROUPS, key=3)
    assert shared.present[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert len(set(shared.texts)) == 6
    assert torch.equal(shared.ids, whole.ids)
    off = (log_p - policy.responder.log_p(weights, whole)).abs()
    assert off[whole.mask.bool()].max() < 2e-5


@pytest.mark.parametrize(
    "lora", [None, pytest.param(LORA, marks=pytest.mark.slow)], ids=["weights", "adapters"]
)
def test_gradients_go_through_the_prompts_keys_and_values(lora, monkeypatch):
    """Against the model's own call on each response alone, unpadded, in float64."""

    def normalized(self, x):  # transformers' own is computed in float32
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", normalized)
    policy = policy_of(lora=lora)
    weights = drawn(policy, torch.float64)
    responses = policy.respond(weights, GROUPS, key=3)
    worth = torch.randn(responses.mask.shape, dtype=torch.float64) * responses.mask
    leaves = {name: value.requires_grad_(True) for name, value in weights.items()}
    total = (worth * policy.responder.log_p(leaves, responses)).sum()
    grads = torch.autograd.grad(total, list(leaves.values()))

    width = responses.ids.shape[1] - responses.mask.shape[1]
    expected = torch.zeros((), dtype=torch.float64)
    for ids, present, each in zip(responses.ids, responses.present, worth, strict=True):
        skipped = int((present[:width] == 0).sum())
        count = int(present[width:].sum())
        row = ids[None, skipped : width + count]
        logits = torch.func.functional_call(
            policy.model._module, leaves, (), {"input_ids": row, "use_cache": False}
        ).logits
        log_p = logits[0, -count - 1 : -1].log_softmax(-1)
        expected = expected + each[:count] @ log_p[range(count), row[0, -count:]]
    whole = torch.autograd.grad(expected, list(leaves.values()))
    assert total.item() == pytest.approx(expected.item(), abs=1e-9)
    for name, grad, other in zip(leaves, grads, whole, strict=True):
        assert other.abs().max() > 1e-3, name
        torch.testing.assert_close(grad, other, rtol=1e-9, atol=1e-9)


def test_each_prompt_is_read_once():
    policy = policy_of()
    weights, tokens = policy.model.init(), []
    responses = policy.respond(weights, GROUPS, key=3)
    embedding = policy.model._module.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, _: tokens.append(tuple(args[0].shape)))
    policy.responder.log_p(weights, responses)
    count = responses.mask.shape[1]
    width = responses.ids.shape[1] - count
    assert tokens == [(2, width - 1), (6, count)]
    tokens.clear()
    policy.respond(weights, GROUPS, key=3)
    assert tokens == [(2, width - 1)] + [(6, 1)] * count


@pytest.mark.parametrize(
    "model",
    [{"source": MISTRAL}, {"remat": r"layers\.\d+$"}],
    ids=["sliding windows", "computed again"],
)
def test_where_a_prefix_is_not_all_that_is_needed_whole_prompts_are_read(model):
    policy = policy_of(**model)
    ids = torch.ones(4, 20, dtype=torch.long)
    assert policy.model.prefix(policy.model.init(), ids, ids) is None
    weights = {name: value.requires_grad_(True) for name, value in policy.model.init().items()}
    responses = policy.respond(weights, [0, 0], key=3)
    alone = policy.respond(weights, [0], key=3)
    log_p = policy.responder.log_p(weights, responses)
    log_p.sum().backward()
    assert responses.texts[0] == alone.texts[0]
    count = int(alone.mask.sum())
    expected = policy.responder.log_p(weights, alone)[0, :count]
    torch.testing.assert_close(log_p[0, :count], expected, rtol=0, atol=2e-5)
