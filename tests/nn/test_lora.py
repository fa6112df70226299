"""Low-rank adapters."""

import pytest
from transformers import BertConfig, BertModel

from metaopt.nn.lora import add_adapters


def test_a_model_without_the_named_layers_says_which_it_has():
    size = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=10, num_hidden_layers=1, **size))
    said = r"^lora: .*q_proj.* linear layers of BertModel are dense, key, query, value; set lora"
    with pytest.raises(ValueError, match=f"(?s){said}"):
        add_adapters(model, {"r": 2, "target_modules": ["q_proj"]})
    add_adapters(model, {"r": 2, "target_modules": ["query"]})
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
