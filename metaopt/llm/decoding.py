"""Batched answers in which each row follows its own request: decoded, or chosen by likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from metaopt.llm.chat import Likelihood, Parameters, Reply, Request, Usage, begun, chosen
from metaopt.llm.errors import LMError, Rejected
from metaopt.llm.likelihood import Continuation, log_probabilities
from metaopt.llm.replies import cut
from metaopt.nn.precision import say_if_slow
from metaopt.nn.pretrained import progress_bars


class Asked(NamedTuple):
    """A request with its conversation as a text, and as tokens."""

    request: Request
    prompt: str
    ids: list[int]


class Decoder:
    """A loaded model and its tokenizer.

    Args:
        path: a local folder, or an id of the hub.
        device: where the model runs.
        dtype: name of a torch dtype, or auto.
        seed: what sampled answers are drawn from.
        revision: commit or tag of the hub, or `None`.

    Raises:
        OSError: no such model, or no safetensors.
        ValueError: the checkpoint lacks weights of the model.
    """

    def __init__(
        self, path: str, device: str, dtype: str, seed: int, revision: str | None = None
    ) -> None:
        self._name, self._seed = path, seed
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
        with progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"the checkpoint lacks the weights {sorted(info['missing_keys'])}")
        self._model = model.to(device).eval()
        say_if_slow(model.dtype, self._model.device.type, "dtype=float32")
        eos = model.generation_config.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), self._tokenizer.eos_token_id} - {None}
        self._ends: list[int] = sorted(ends)
        self._special: list[str] = [token for token in self._tokenizer.all_special_tokens if token]
        self._special_ids: set[int] = set(self._tokenizer.all_special_ids)
        # Masked wherever it stands. A tokenizer's own may lie beyond the rows of the embedding.
        self._pad = next(iter(self._ends), 0)
        model.generation_config = GenerationConfig()
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def answers(self, requests: Sequence[Request]) -> list[Reply | LMError]:
        """Return the answers, in order; all requests have one `max_tokens`.

        A batch that does not fit the memory is halved.
        """
        encoded = [self._encode(request) for request in requests]
        fit = [asked for asked in encoded if isinstance(asked, Asked)]
        answers = {
            choosing: iter(self._halved(answer, [a for a in fit if _chooses(a) is choosing]))
            for choosing, answer in ((False, self._generate), (True, self._choose))
        }
        return [
            next(answers[_chooses(asked)]) if isinstance(asked, Asked) else asked
            for asked in encoded
        ]

    def _encode(self, request: Request) -> Asked | LMError:
        try:
            prompt = self._prompt(request)
            (ids,) = self._ids([prompt])
        except TemplateError as error:
            return _refused(f"The chat template refused the messages: {error}", request)
        if not ids:
            return _refused("The messages hold no token.", request)
        longest = 0 if request.parameters.choices else request.parameters.max_tokens
        refused = self._too_long(request, len(ids), longest, f"max_tokens={longest}")
        return refused or Asked(request, prompt, ids)

    def _prompt(self, request: Request) -> str:
        """Return the text that the answer goes on from.

        Without a chat template turns are separated by a blank line, the answer's from the last too.
        """
        messages = [dict(m) for m in begun(request.messages, request.parameters.prefill)]
        if self._tokenizer.chat_template is None:
            opened = messages[-1]["role"] == "assistant"
            return "\n\n".join([m["content"] for m in messages] + [""] * (not opened))
        # Behind the template, which would end the assistant's turn and start another one.
        prefix = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        asked: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return asked + prefix

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        special = self._tokenizer.chat_template is None
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return ids

    def _too_long(self, request: Request, prompt: int, longest: int, what: str) -> Rejected | None:
        if self._context is None or prompt + longest <= self._context:
            return None
        words = f"{prompt} tokens and {what} exceed the model's {self._context}."
        return _refused(words, request)

    def _halved(
        self, answer: Callable[[Sequence[Asked]], list[Reply | LMError]], asked: Sequence[Asked]
    ) -> list[Reply | LMError]:
        if not asked:
            return []
        try:
            return answer(asked)
        except FloatingPointError as error:
            return [_refused(str(error), each.request) for each in asked]
        except torch.OutOfMemoryError:
            pass
        if len(asked) == 1:
            words = "One request alone does not fit the device's memory."
            return [_refused(words, asked[0].request)]
        torch.cuda.empty_cache()
        half = len(asked) // 2
        return [*self._halved(answer, asked[:half]), *self._halved(answer, asked[half:])]

    def _choose(self, asked: Sequence[Asked]) -> list[Reply | LMError]:
        """Return the likeliest choice of each request, with the likelihood of every one."""
        tails = [self._tails(each) for each in asked]
        fit = [(a.ids, t) for a, t in zip(asked, tails, strict=True) if isinstance(t, list)]
        continuations = [Continuation(ids, tail) for ids, each in fit for tail in each]
        log_p = iter(log_probabilities(self._model, continuations, self._pad, len(asked)))
        replies: list[Reply | LMError] = []
        for (request, _, ids), each in zip(asked, tails, strict=True):
            if isinstance(each, LMError):
                replies.append(each)
                continue
            likelihoods = [Likelihood(next(log_p), len(tail)) for tail in each]
            usage = Usage(len(ids) + sum(map(len, each)), 0)
            replies.append(chosen(request.parameters.choices, likelihoods, usage, self._name))
        return replies

    def _tails(self, asked: Asked) -> list[list[int]] | LMError:
        """Return the tokens that each choice adds to the conversation's."""
        request, prompt, ids = asked
        end, own = self._end(asked)
        choices = request.parameters.choices
        tails = []
        for choice, both in zip(choices, self._ids([end + c for c in choices]), strict=True):
            if both[: len(own)] != own or len(both) == len(own):
                words = (
                    f"The choice {choice[:40]!r} shares a token with the end of the prompt, "
                    f"{prompt[-20:]!r}: end the prefill where a word ends, and let choices begin "
                    "with the space."
                )
                return _refused(words, request)
            tails.append(both[len(own) :])
        longest = max(map(len, tails))
        return self._too_long(request, len(ids), longest, f"{longest} of a choice") or tails

    def _end(self, asked: Asked) -> tuple[str, list[int]]:
        """Return the end of a conversation, from its last special token on, and its tokens.

        Tokenizers cut a text at special tokens before anything else, so that what follows the last
        one does not change the tokens before it: a choice is told from the end alone, which is
        short, and not from the whole conversation once more for each choice.
        """
        place = max((asked.prompt.rfind(token) for token in self._special), default=-1)
        if place > 0:
            end = asked.prompt[place:]
            (own,) = self._ids([end])
            # Not so where a start token is added, or a tokenizer reads special tokens as letters.
            if own[0] in self._special_ids and asked.ids[-len(own) :] == own:
                return end, own
        return asked.prompt, asked.ids

    @torch.inference_mode()
    def _generate(self, asked: Sequence[Asked]) -> list[Reply | LMError]:
        parameters = [each.request.parameters for each in asked]
        prompts = [each.ids for each in asked]
        width = max(map(len, prompts))
        padded = [[self._pad] * (width - len(ids)) + ids for ids in prompts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        device = self._model.device
        draws = torch.stack([uniforms(a.request, self._seed) for a in asked]).to(device)
        stops = _Stops([p.stop for p in parameters], width, self._text)
        written = self._model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                max_new_tokens=parameters[0].max_tokens,
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=self._pad,
            ),
            logits_processor=LogitsProcessorList([Draw(parameters, draws, width)]),
            stopping_criteria=StoppingCriteriaList([stops]),
        )[:, width:].tolist()
        return [
            self._reply(each.request, len(each.ids), row)
            for each, row in zip(asked, written, strict=True)
        ]

    def _reply(self, request: Request, prompt: int, row: list[int]) -> Reply:
        count = next((i + 1 for i, token in enumerate(row) if token in self._ends), len(row))
        ended = count > 0 and row[count - 1] in self._ends
        text, stops = self._text(row[:count]), request.parameters.stop
        if _holds(text, stops):
            ended = True
            count = next(n for n in range(1, count + 1) if _holds(self._text(row[:n]), stops))
            text = cut(self._text(row[:count]), stops)
        return Reply(text, Usage(prompt, count), "stop" if ended else "length", self._name)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _chooses(asked: Asked) -> bool:
    return bool(asked.request.parameters.choices)


def _refused(words: str, request: Request) -> Rejected:
    return Rejected(words, request.role, remote=False)


def uniforms(request: Request, seed: int) -> Tensor:
    """Return the numbers (max_tokens,) in [0, 1) that a request's tokens are drawn by, float64."""
    key = int(request.key(str(seed))[:15], 16)
    generator = torch.Generator().manual_seed(key)
    return torch.rand(request.parameters.max_tokens, generator=generator, dtype=torch.float64)


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Return one token (B,) for each row: the likeliest at temperature 0, else a sample.

    The sample is the first token whose cumulated probability exceeds `uniform`, among the fewest
    tokens whose probability is at least `top_p` (Holtzman et al., The Curious Case of Neural Text
    Degeneration, ICLR 2020).

    Args:
        logits: (B, V).
        temperature, top_p, uniform: (B,), float64; uniform in [0, 1).

    Cost: a sort of (B, V) where a row has top_p < 1.
    """
    greedy = temperature == 0
    scale = torch.where(greedy, torch.ones_like(temperature), temperature)
    # In float64: summed over 150,000 words, the rounding stays far below one probability.
    p = torch.softmax(logits.double() / scale[:, None], -1)
    if (top_p < 1).any():
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        inside = ordered.masked_fill(before >= top_p[:, None], 0.0)
        p = torch.zeros_like(p).scatter(-1, order, inside)
    total = p.cumsum(-1)
    mass = total[:, -1]
    # Below the whole mass, or rounding could choose the word after the last one.
    at = torch.minimum(uniform * mass, torch.nextafter(mass, torch.zeros_like(mass)))
    sampled = torch.searchsorted(total, at[:, None], right=True)[:, 0]
    return torch.where(greedy, logits.argmax(-1), sampled)


class Draw(LogitsProcessor):
    """Leaves each row the one token that `draw` chose, for `generate` with do_sample=False.

    Args:
        parameters: temperature and top_p of each row.
        uniform: numbers (B, max_new_tokens) in [0, 1) that decide the samples, float64.
        width: tokens of the prompts, with their padding.
    """

    def __init__(self, parameters: Sequence[Parameters], uniform: Tensor, width: int) -> None:
        self._width, self._uniform = width, uniform
        self._temperature = uniform.new_tensor([p.temperature for p in parameters])
        self._top_p = uniform.new_tensor([p.top_p for p in parameters])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) that are 0 for the token of each row and -inf for all others."""
        if scores.isnan().any():
            raise FloatingPointError("The model's logits are not numbers; try dtype=float32.")
        step = input_ids.shape[1] - self._width
        token = draw(scores, self._temperature, self._top_p, self._uniform[:, step])
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


class _Stops(StoppingCriteria):
    """Ends each row whose text holds one of its stops."""

    def __init__(
        self, stops: Sequence[tuple[str, ...]], width: int, text: Callable[[list[int]], str]
    ) -> None:
        self._stops, self._width, self._text = stops, width, text

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        rows = input_ids[:, self._width :]
        ended = [
            bool(stops) and _holds(self._text(row.tolist()), stops)
            for row, stops in zip(rows, self._stops, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


def _holds(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)
