"""A language model of the transformers library, run in this process."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from metaopt.data.folder import model_source
from metaopt.llm.authorisation import Authorisation, permit
from metaopt.llm.chat import Message, Parameters, Reply, Request
from metaopt.llm.errors import LMError, Rejected
from metaopt.nn.adapters import refuse_adapter

if TYPE_CHECKING:
    from metaopt.llm.decoding import Decoder

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


class TransformersLM:
    """A causal language model from a folder or the hub; requests that wait together run together.

    A batch is padded on the left, and each row is decoded by its own parameters: greedily, or
    sampled by inverse transform from uniform numbers that are a function of the seed and of the
    request. An answer therefore does not depend on what else is in the batch, up to the rounding
    of the logits, which differs with a batch's shape and between devices.

    Messages go through the tokenizer's chat template, or where it has none are joined by empty
    lines. A last message of the assistant, or a prefill, is the beginning of the answer. Choices
    are answered by one forward pass: the softmax of the logits, multiplied over the tokens of a
    longer text, so that `choices=(text,)` has the likelihood of a whole text. Only the parameters
    of the request decide: a checkpoint's own penalties, temperature or top-k are not applied.
    Weights are read from safetensors only, and code of the hub is never run. A client loads the
    model when it is made, and not for a replay, which needs no weights.

    Args:
        path: a local folder, an id of the hub, or a name that `metaopt-fetch` knows.
        device: cpu, cuda, cuda:1, ...
        dtype: float32, bfloat16, float16, float64, or auto for the checkpoint's own.
        batch_size: most requests in one batch; those of one `max_tokens` share one.
        seed: what sampled answers are drawn from.
        revision: commit or tag of the hub, or `None` for the newest.
        wait: seconds for which a batch that is not full waits for more requests.
        authorisation: the permission to ask it, or its fields; the role target needs one.

    Raises:
        ValueError: a number out of range, an unknown dtype, a folder with an adapter alone, or a
            wrong authorisation.
    """

    deterministic = False

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        dtype: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
        revision: str | None = None,
        wait: float = 0.01,
        authorisation: Authorisation | Mapping[str, str] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
        if batch_size < 1 or wait < 0:
            raise ValueError(
                f"TransformersLM needs batch_size >= 1 and wait >= 0; got batch_size={batch_size}, "
                f"wait={wait}."
            )
        refuse_adapter(path)
        self.authorisation = Authorisation.of(authorisation)
        self._path, self._device, self._dtype = path, device, dtype
        self._revision, self._seed = revision, seed
        self._batch_size, self._wait = batch_size, wait
        self.model = f"{path}{f'@{revision}' if revision else ''} {dtype} seed {seed}"
        self._lock, self._loading = threading.Condition(), threading.Lock()
        self._waiting: deque[_Asked] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._decoder: Decoder | None = None

    def __repr__(self) -> str:
        return f"TransformersLM({self.model!r})"

    def load(self) -> None:
        """Load the model, unless it is loaded.

        Raises:
            FileNotFoundError: `metaopt-fetch` knows the model, and has not brought it.
            ValueError: it cannot be loaded; says why.
        """
        self._loaded()

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        """Return one answer; see `metaopt.llm.chat.LM`.

        Raises:
            Rejected: the model cannot be loaded, the request does not fit the model, its chat
                template or the memory, or there is no authorisation.
        """
        permit(role, self.authorisation)
        asked = _Asked(Request(role, messages, parameters, rollout), Future())
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="TransformersLM")
            self._waiting.append(asked)
            self._lock.notify()
            self._thread.submit(self._serve)
        return await asyncio.wrap_future(asked.reply)

    async def close(self) -> None:
        """Answer what waits, end the thread and free the model; a question loads it again."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)
            self._decoder = None

    def _serve(self) -> None:
        """Answer one batch; one call is queued for each request, so that none is left."""
        batch = [asked for asked in self._take() if asked.reply.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            answers = self._answers([asked.request for asked in batch])
        except Exception as error:
            for asked in batch:
                asked.reply.set_exception(error)
            return
        for asked, answer in zip(batch, answers, strict=True):
            if isinstance(answer, LMError):
                asked.reply.set_exception(answer)
            else:
                asked.reply.set_result(answer)

    def _take(self) -> list[_Asked]:
        with self._lock:
            if not self._waiting:
                return []
            self._lock.wait_for(lambda: len(self._waiting) >= self._batch_size, self._wait)
            longest = self._waiting[0].request.parameters.max_tokens
            same = [a for a in self._waiting if a.request.parameters.max_tokens == longest]
            batch = same[: self._batch_size]
            for asked in batch:
                self._waiting.remove(asked)
            return batch

    def _answers(self, requests: Sequence[Request]) -> Sequence[Reply | LMError]:
        try:
            decoder = self._loaded()
        except (FileNotFoundError, ValueError) as error:
            return [Rejected(str(error), request.role, remote=False) for request in requests]
        return decoder.answers(requests)

    def _loaded(self) -> Decoder:
        from metaopt.llm.decoding import Decoder

        with self._loading:  # whoever asks and the thread that answers must not load it twice
            if self._decoder is None:
                path = str(model_source(self._path))
                try:
                    self._decoder = Decoder(
                        path, self._device, self._dtype, self._seed, self._revision
                    )
                except (OSError, ValueError, RuntimeError) as error:
                    why = str(error).strip().partition("\n")[0].rstrip(".")
                    raise ValueError(
                        f"Cannot load the model {self._path!r} on {self._device}: {why}. Give a "
                        f"folder with a causal language model in safetensors and its tokenizer, "
                        f"an id of the hub, or a name that metaopt-fetch knows."
                    ) from error
            return self._decoder


class _Asked(NamedTuple):
    request: Request
    reply: Future[Reply]
