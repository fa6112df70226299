"""A language model behind a server of the chat completions protocol: local ones and vendors."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from asyncio import AbstractEventLoop
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import WeakKeyDictionary

from metaopt.llm.authorisation import Authorisation, endpoint, permit
from metaopt.llm.chat import Message, Parameters, Reply, Request, begun
from metaopt.llm.errors import LMError, Rejected, Transient, Truncated, Unsupported
from metaopt.llm.replies import failure, read
from metaopt.llm.top_logprobs import TOP, WAYS_OUT
from metaopt.llm.transport import bounded

if TYPE_CHECKING:
    from openai import AsyncOpenAI

RESERVED_FIELDS = {"model", "messages", "temperature", "top_p", "stop", "seed", "n", "stream"}
RESERVED_FIELDS |= {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
"""Fields of the request's body that `extra_body` may not set."""

NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
"""Errors of the HTTP library before it had a connection."""

LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""They log every request, and at their finest headers and whole prompts: silenced below WARNING."""


class OpenAICompatibleLM:
    """A model asked over HTTP by the chat completions protocol, one request for one answer.

    Servers are vLLM, SGLang, llama.cpp, `transformers serve`, or a vendor's. Nothing is retried
    here, and redirects are not followed. The connection is made at the first question, so that a
    replay needs neither a key nor a server. Answers of rollouts differ as far as the server
    samples: some need `do_sample` in the model's generation config, and some share one random
    state among concurrent requests, so that only a cassette repeats a run.

    Choices are read off the log probabilities of the first token (`logprobs`, `top_logprobs`), so
    each must be one token. Until a reply has shown that the server tells them, requests with
    choices go one at a time, and none after one that lacks them. A prefill is sent as a last
    message of the assistant with `continue_final_message`, which vLLM and SGLang continue and
    others refuse; a server that continues such a message by itself is asked with one instead.

    Args:
        model: the server's name of the model.
        base_url: where the server is, up to and with /v1.
        key_variable: environment variable that holds the key, or `None` where none is needed.
        timeout: longest wait for one answer, in seconds.
        hosts: host names that may be asked in addition to this machine.
        authorisation: the permission to ask it, or its fields; the role target needs one.
        seed: send each sampled request a seed made of this number and of the request, or `None`.
        limit_field: the server's name of the longest answer; some vendors refuse max_tokens.
        extra_body: further fields of the request's body. They are part of what names the answers,
            so no credentials.
        name: what recorded answers are kept under instead of "model at base_url", for a server
            that moves.

    Raises:
        ImportError: openai is not installed.
        ValueError: a host that is not listed, a key that would travel unencrypted, a number out of
            range, or a field in `extra_body` that is set elsewhere.
    """

    deterministic = False

    def __init__(
        self,
        model: str,
        base_url: str,
        key_variable: str | None = "OPENAI_API_KEY",
        timeout: float = 120.0,
        hosts: Collection[str] = (),
        authorisation: Authorisation | Mapping[str, str] | None = None,
        seed: int | None = None,
        limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "OpenAICompatibleLM needs openai: pip install metaopt[llm]"
            ) from error
        if not model:
            raise ValueError("model must be the server's name of the model; got an empty text.")
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds; got {timeout}.")
        if limit_field not in ("max_tokens", "max_completion_tokens"):
            raise ValueError(
                f"limit_field must be max_tokens or max_completion_tokens; got {limit_field!r}."
            )
        reserved = sorted(RESERVED_FIELDS & set(extra_body or ()))
        if reserved:
            raise ValueError(f"extra_body may not set {', '.join(reserved)}: set elsewhere.")
        self._base_url, self._local = endpoint(base_url, hosts)
        if key_variable and not self._local and self._base_url.startswith("http:"):
            raise ValueError(
                f"base_url={base_url!r} would send the key of {key_variable} unencrypted: use "
                "https, or key_variable=null."
            )
        self.authorisation = Authorisation.of(authorisation)
        self._served, self._extra = model, dict(extra_body or {})
        self._key_variable, self._timeout = key_variable, timeout
        self._seed, self._limit_field = seed, limit_field
        further = {**self._extra, **({} if seed is None else {"seed": seed})}
        self.model = name or f"{model} at {self._base_url}"
        self.model += f" {json.dumps(further, sort_keys=True)}" if further else ""
        self._connections: WeakKeyDictionary[AbstractEventLoop, AsyncOpenAI] = WeakKeyDictionary()
        self._tells_likelihoods = False
        self._untold: str | None = None
        self._first: WeakKeyDictionary[AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"OpenAICompatibleLM({self.model!r})"

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        """Return one answer; see `metaopt.llm.chat.LM`.

        Raises:
            Transient: 408, 429, 5xx, a timeout or a lost connection.
            PolicyRefusal: the request or its answer was stopped by a content policy.
            Truncated: the answer is not JSON, or holds an error, no choice, no text or a blank one,
                is compressed, or has no end.
            Rejected: any other 4xx, a redirect, no key, or no authorisation; choices that the
                server does not list.
            Unsupported: choices, and a server without log probabilities.
        """
        permit(role, self.authorisation)
        request = Request(role, messages, parameters, rollout)
        if not parameters.choices:
            return await self._ask(request)
        for text in parameters.choices:
            if len(text.split()) > 1:
                shown = f"{text[:20]!r}{'...' * (len(text) > 20)}"
                raise Unsupported(
                    "A server of chat completions tells the probabilities of single tokens; the "
                    f"choice {shown} is of several. The likelihood of a text takes the "
                    "model in this process: llm=transformers.",
                    role,
                    sent=False,
                )
        loop = asyncio.get_running_loop()
        async with self._first.setdefault(loop, asyncio.Lock()):
            if not self._tells_likelihoods:
                return await self._ask_first(request)
        return await self._ask(request)

    async def _ask_first(self, request: Request) -> Reply:
        """Ask for choices where no reply has shown yet that the server tells likelihoods."""
        if self._untold is not None:
            raise Unsupported(self._untold, request.role, sent=False)
        try:
            reply = await self._ask(request)
        except Rejected as error:
            if isinstance(error, Unsupported):
                self._untold = str(error)
            elif "logprobs" in str(error):  # a server that refuses the fields, or so many
                self._untold = (
                    f"{error}. logprobs and top_logprobs={TOP} were asked for. {WAYS_OUT}"
                )
            if self._untold is None:
                raise
            raise Unsupported(self._untold, request.role, billed=error.billed) from None
        self._tells_likelihoods = True
        return reply

    async def _ask(self, request: Request) -> Reply:
        import openai

        connection = self._connect(request.role)
        key = connection.api_key if self._key_variable else None
        messages = begun(request.messages, request.parameters.prefill)
        role = request.role
        failed: LMError
        try:
            call = connection.chat.completions.with_raw_response.create(
                model=self._served,
                messages=cast(Any, [dict(m) for m in messages]),
                extra_body={**self._extra, **self._fields(request)},
            )
            raw = await asyncio.wait_for(call, self._timeout)
            return read(raw.http_response.content, request, self._served, key, self._base_url)
        except openai.APIStatusError as error:
            failed = failure(error, request, key)
            if "continue_final_message" in str(failed):
                words = "prefill takes a server that continues an answer, as vLLM and SGLang do"
                failed = Unsupported(f"{failed}. {words}.", role, kind=failed.kind)
        except Truncated as error:
            failed = Truncated(str(error), role, retry=error.retry)
        except (asyncio.TimeoutError, openai.APIConnectionError) as error:
            failed = self._lost(error, role)
        # raised out here: openai's errors hold the request with its headers, and would be shown
        # as the context of this one
        raise failed

    def _lost(self, error: Exception, role: str) -> LMError:
        """Return what an error of the connection means for the request."""
        cause = error.__cause__
        if isinstance(cause, Truncated):  # by openai's older versions, which wrap every error
            return Truncated(str(cause), role)
        name = type(cause).__name__
        sent = name not in NOT_SENT
        if "Timeout" in name or isinstance(error, asyncio.TimeoutError):
            words, kind = f"No answer within {self._timeout:g} s.", "timeout"
        else:
            words, kind = f"No connection to {self._base_url} ({name}).", "lost connection"
        return Transient(words, role, kind=kind, billed=sent, sent=sent)

    async def close(self) -> None:
        """Close the connections of the running event loop; the next question opens new ones."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.close()

    def _connect(self, role: str) -> AsyncOpenAI:
        import openai

        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            for logger in LOGGERS:
                logging.getLogger(logger).setLevel(logging.WARNING)
            self._connections[loop] = openai.AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._key(role),
                max_retries=0,
                timeout=self._timeout,
                default_headers={"Accept-Encoding": "identity"},
                http_client=openai.DefaultAsyncHttpxClient(
                    follow_redirects=False,
                    trust_env=not self._local,
                    event_hooks={"response": [bounded(openai.DefaultAsyncHttpxClient)]},
                ),
            )
        return self._connections[loop]

    def _key(self, role: str) -> str:
        if self._key_variable is None:
            return "none"
        key = os.environ.get(self._key_variable, "").strip()
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise Rejected(
                f"The environment variable {self._key_variable} must hold the key of "
                f"{self._base_url}; it is {'damaged' if key else 'not set'}. key_variable=null "
                "asks without a key.",
                role,
                sent=False,
            )
        return key

    def _fields(self, request: Request) -> dict[str, Any]:
        parameters = request.parameters
        fields: dict[str, Any] = {
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            self._limit_field: 1 if parameters.choices else parameters.max_tokens,
        }
        if parameters.choices:
            fields |= {"logprobs": True, "top_logprobs": TOP}
        if parameters.prefill:
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        if parameters.stop:
            fields["stop"] = list(parameters.stop)
        if self._seed is not None and parameters.temperature > 0:
            fields["seed"] = int(request.key(self.model)[:8], 16) >> 1
        return fields
