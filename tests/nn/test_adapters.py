"""An adapter in place of a model is refused wherever a model is read."""

from pathlib import Path

import pytest
import transformers

from metaopt.llm.transformers_lm import TransformersLM
from metaopt.nn.configuration import configuration
from metaopt.nn.word_tokenizer import tokenizer_of
from metaopt.problems.reward_model.model.export import load
from metaopt.problems.reward_model.model.scorer import Scorer
from metaopt.problems.reward_model.model.text_encoder import TextEncoder

# PEFT reads an attribute of transformers under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder as PEFT writes one, on a base that is there."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 11}
    config = transformers.LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **sizes)
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(folder / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(model, lora).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize(
    "read",
    [
        load,
        TextEncoder,
        Scorer,
        lambda source: configuration(source, None),
        lambda source: tokenizer_of(source, None, []),
        TransformersLM,
    ],
    ids=["reward", "encoder", "scorer", "reader", "tokenizer", "lm"],
)
def test_an_adapter_is_refused_with_how_to_merge_it(read, adapter: Path):
    with pytest.raises(ValueError, match=r"holds a PEFT adapter, not a model\. Merge it into its"):
        read(str(adapter))
