"""Servers on the loopback address that the tests of the LM layer ask."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from real_models import real_model

ALPHABET = [chr(code) for code in range(32, 127)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant> {% endif %}"
)


class Served(NamedTuple):
    """What a server answers.

    `delay` in seconds before it, `drip` between its bytes; `claim` more are announced than sent.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    drip: float = 0.0
    claim: int = 0


class Asked(NamedTuple):
    """What a server was asked: `before` counts earlier requests with the same text."""

    text: str
    before: int
    body: dict[str, Any]
    headers: dict[str, str]


def completion(text: str | None, finish: str | None = "stop", **message: Any) -> Served:
    """Return the chat completion of a text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    body = {"model": "m-1", "choices": [{**choice, "finish_reason": finish}], "usage": usage}
    return Served(200, json.dumps(body).encode())


def error(status: int, message: str, after: str | None = None, **fields: Any) -> Served:
    """Return an error in the protocol's form, with a Retry-After."""
    body = json.dumps({"error": {"message": message, **fields}}).encode()
    return Served(status, body, {} if after is None else {"Retry-After": after})


class Scripted:
    """A server that answers by a function of what it is asked, and writes down what it was asked.

    Attributes:
        url: its base URL.
        log: every request that arrived, in order.
    """

    def __init__(self, script: Callable[[Asked], Served]) -> None:
        self.log: list[Asked] = []
        self._lock, self._ending = threading.Lock(), threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served = script(owner._asked(body, {k.lower(): v for k, v in self.headers.items()}))
                owner._ending.wait(served.delay)
                with contextlib.suppress(ConnectionError):
                    self.send_response(served.status)
                    headers = {"Content-Type": "application/json", **served.headers}
                    headers["Content-Length"] = str(len(served.body) + served.claim)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    size = 1 if served.drip else max(len(served.body), 1)
                    for start in range(0, len(served.body), size):
                        self.wfile.write(served.body[start : start + size])
                        owner._ending.wait(served.drip)
                    self.close_connection = bool(served.claim)

            def log_message(self, format: str, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _asked(self, body: dict[str, Any], headers: dict[str, str]) -> Asked:
        text = body["messages"][-1]["content"]
        with self._lock:
            asked = Asked(text, self.counts[text], body, headers)
            self.log.append(asked)
        return asked

    @property
    def counts(self) -> Counter[str]:
        """How often each text was asked."""
        return Counter(asked.text for asked in self.log)

    def __enter__(self) -> Scripted:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def smollm2() -> Path:
    """Return the folder of SmolLM2-135M-Instruct; skips the test where it is not there."""
    return real_model("smollm2")


def tiny_model(folder: Path, chat: bool = True, context: int = 256) -> Path:
    """Make a random Llama of two layers over printable characters, with its tokenizer, in a folder.

    Its logits are scaled so that greedy answers do not hang on the last digit.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<unk>", "<pad>", "<end>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    )
    fast.chat_template = TEMPLATE if chat else None
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context,
        bos_token_id=None, eos_token_id=2, pad_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
