"""Rematerialised layers of transformers, with the caches that they fill, against plain ones."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

from metaopt.engine.functional import functional_call
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.random import replay
from metaopt.engine.remat_blocks import remat_blocks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
IDS = torch.arange(14).view(2, 7)


def llama(**options):
    config = transformers.LlamaConfig(**SIZES, attention_dropout=0.3, **options)
    return transformers.LlamaForCausalLM(config)


def gpt2(**options):
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0}
    config = transformers.GPT2Config(**sizes, eos_token_id=1, **options)
    return transformers.GPT2LMHeadModel(config)


def qwen2(**options):
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=1, **options)
    return transformers.Qwen2ForCausalLM(config)


def bert(**options):
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **options))


MODELS = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2, "bert": bert}
LAYERS = r"(layers|layer|h)\.\d+$"


def made(make, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(**options).double()


def everything(model, **arguments):
    """Return logits, gradients and products of a functional call, and the generator after it."""
    params, buffers, rest = split_module(model.train())
    leaves = {k: v.requires_grad_() for k, v in params.items()}
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    arguments = {"attention_mask": mask, **arguments}
    with twice_differentiable(), replay(3):
        logits = functional_call(model, leaves | buffers | rest, (IDS,), arguments).logits
        grads = torch.autograd.grad(
            logits.sin().mean(), list(leaves.values()), create_graph=True, materialize_grads=True
        )
        along = sum(g.sin().sum() for g in grads)
        products = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
        state = torch.get_rng_state().double()
    return [[t.detach() for t in part] for part in ([logits], grads, products, [state])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pattern", [LAYERS, r"(layers|layer|h)\.1$"])
@pytest.mark.parametrize("name", MODELS)
def test_layers_are_those_of_the_model(name, pattern, attention):
    """With the cache that a causal model makes unless it is told otherwise."""
    model = made(MODELS[name], attn_implementation=attention)
    remat = remat_blocks(copy.deepcopy(model), pattern)
    # Llama and Qwen2 normalize in float32, and a second derivative is summed in another order.
    tolerances = {"llama": 1e-5, "qwen2": 1e-5}
    for a, b in zip(everything(model), everything(remat), strict=True):
        size = max(float(t.abs().max()) for t in a)
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, rtol=0, atol=tolerances.get(name, 1e-13) * size)


def test_a_cache_is_filled_once_and_on_the_graph():
    model = made(llama).eval()
    remat = remat_blocks(copy.deepcopy(model), LAYERS)
    grads = []
    for each in (model, remat):
        cache = each(IDS).past_key_values
        assert cache.get_seq_length() == 7
        value = sum(layer.keys.sin().sum() + layer.values.sum() for layer in cache.layers)
        weight = each.model.layers[0].self_attn.k_proj.weight
        grads.append(torch.autograd.grad(value, weight)[0])
    assert torch.allclose(*grads, rtol=1e-6)


def test_a_cache_that_holds_something_is_refused():
    remat = remat_blocks(made(llama), LAYERS)
    cache = remat(IDS).past_key_values
    with pytest.raises(ValueError, match=r"layers\.0' .* DynamicCache that is not empty"):
        remat(IDS, past_key_values=cache)
    with torch.no_grad():  # nothing is rematerialised
        assert remat(IDS, past_key_values=cache).past_key_values.get_seq_length() == 14


def test_attention_weights_that_hooks_take_out_of_a_layer_have_no_derivative():
    remat = remat_blocks(made(llama, attn_implementation="eager"), LAYERS)
    attentions = remat(IDS, output_attentions=True).attentions
    with pytest.raises(ValueError, match="read without being returned"):
        torch.autograd.grad(attentions[0].sum(), remat.model.embed_tokens.weight)
