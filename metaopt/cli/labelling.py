"""`metaopt-label`: step labels for solutions, by rollouts of a policy from each step."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from metaopt.files.errors import Mistakes

if TYPE_CHECKING:
    from metaopt.llm import LM, Client
    from metaopt.problems.process_reward.data.formats import Chain
    from metaopt.problems.process_reward.labelling.rollouts import Judge, Policy

MODELS = ("transformers", "server")
"""Policies that are language models."""

DESCRIPTION = """
Label every step of worked solutions with the share of a policy's continuations
from there that end at the right answer (Math-Shepherd, Wang et al., ACL 2024).
Rollouts stop early where a step is decided. A killed command goes on where it
was when it is run again; what a server has answered is kept next to the folder,
in FOLDER.cassette, and not asked for twice.

  metaopt-label solutions.jsonl labels --policy transformers --model NAME
  metaopt-label solutions.jsonl labels --policy server --model NAME
  metaopt-label docs/samples/unlabelled.jsonl labels --policy arithmetic

NAME is a folder or an id of the hub, such as Qwen/Qwen2.5-Math-1.5B-Instruct,
or what vLLM, SGLang or a vendor calls its model; arithmetic is simulated.

A line of solutions.jsonl is
  {"question": "...", "response": "step\\nstep", "answer": "..."}
Every format of step labels is read, too, with the answers in a file of their
own (--answers). The simulated solver knows questions such as "3 +2 *4" only:
arithmetic modulo 5, from left to right.
"""


READ_BY = {
    **dict.fromkeys(("model", "batch_size", "temperature", "max_tokens", "limits"), MODELS),
    **dict.fromkeys(("device", "dtype"), MODELS[:1]),
    **dict.fromkeys(("base_url", "key_variable", "judge"), MODELS[1:]),
}
"""Which policies use an option that not all of them do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake is answered with a sentence and status 2."""
    options = _parser().parse_args(arguments)
    from metaopt.llm import BudgetSpent, LMError

    try:
        _label(options)
    except (ValueError, OSError, ImportError, LMError) as error:
        spent = isinstance(error, BudgetSpent)
        more = ". The same command goes on with larger --limits." if spent else ""
        print(f"metaopt-label: {error}{more}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmetaopt-label: stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and the default of each option."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metaopt-label", description=DESCRIPTION, formatter_class=_HelpFormatter
    )
    add = parser.add_argument
    add("solutions", help="file, folder or data set of the hub (owner/name)")
    add("folder", type=Path, help="where labels are written, one file for each batch of solutions")
    add("--answers", metavar="FILE", help="rows with question and answer, if not the solutions")
    add("--columns", nargs="+", metavar="COLUMN=NAME", default=[], help="names in the solutions")
    add("--lenient", action="store_true", help="leave malformed rows out, with a warning")
    add("--format", help="of the solutions, if their columns do not say")
    add("--policy", choices=(*MODELS, "arithmetic"), required=True)
    add("--model", help="folder, id of the hub, or the server's name of the model")
    add("--base-url", default="http://127.0.0.1:8000/v1", help="of the server")
    add("--key-variable", metavar="NAME", help="environment variable with the server's key")
    add(
        "--limits",
        nargs="+",
        metavar="UNIT=AMOUNT",
        default=[],
        help="most lm_calls, lm_requests or tokens; of a server, over all resumes of a folder",
    )
    add("--judge", metavar="MODEL", help="of the server, for answers that rules cannot compare")
    add("--device", default="cpu", help="of a transformers model")
    add("--dtype", default="auto", help="auto, float64, float32, bfloat16 or float16")
    add("--batch-size", type=int, default=16, help="continuations generated together")
    add("--temperature", type=float, default=0.7, help="of sampling, above 0")
    add("--max-tokens", type=int, default=1024, help="longest continuation")
    add("--minimum", type=int, default=4, help="rollouts of each step")
    add("--maximum", type=int, default=8, help="rollouts of an undecided step")
    add("--batch", type=int, default=64, help="solutions in a file of the folder")
    add("--limit", type=int, help="label the first solutions only")
    add("--seed", type=int, default=0, help="another seed is other rollouts")
    add("--stepwise", type=Path, metavar="FILE", help="write TRL's stepwise rows, too")
    add("--hard", action="store_true", help="in --stepwise: 1 where any rollout was right, else 0")
    return parser


def _label(options: argparse.Namespace) -> None:
    from metaopt.problems.process_reward.data.formats import harden, truncate, write
    from metaopt.problems.process_reward.data.formats.reading import check_file
    from metaopt.problems.process_reward.labelling.rollouts import label_steps

    mistakes = Mistakes()
    mistakes.said += [*_unread(options), *_out_of_range(options)]
    chains: Sequence[Chain] = ()
    with ExitStack() as stack:
        stack.enter_context(_absent_if_refused(options.folder))
        if options.stepwise is not None:
            stack.enter_context(_absent_if_refused(options.stepwise.parent))
        with mistakes.collected():
            if options.stepwise is not None:
                check_file(options.stepwise)
        with mistakes.collected():
            chains, answers = _solutions(options)
        if not mistakes.said:
            with mistakes.collected():
                _check_writable(options.folder, "FOLDER")
            with mistakes.collected():
                if options.stepwise is not None:
                    _check_writable(options.stepwise.parent, "--stepwise FILE")
        if options.policy == "transformers" and options.model is not None:
            mistakes.refuse()  # before weights are read, which may take long
        with mistakes.collected():
            policy, judge, client = _models(options, sum(len(c.steps) for c in chains), stack)
        mistakes.refuse()
        if client is not None and options.policy == "server":
            client.open(options.folder)
        labelled = label_steps(
            chains, answers, policy, options.folder, judge, options.minimum, options.maximum,
            options.batch, options.seed,
            lambda done: print(f"{done} of {len(chains)} solutions", file=sys.stderr),
        )  # fmt: skip
    if options.stepwise is not None:
        rows = [truncate(chain) for chain in labelled]
        write(options.stepwise, [harden(c) for c in rows] if options.hard else rows, "stepwise")
    failures = [] if client is None else client.failures()
    print(*failures, _summary(labelled, options.folder), sep="\n")


def _unread(options: argparse.Namespace) -> list[str]:
    """Return a sentence for each option that was given and that the policy does not use."""
    default, sentences = _parser().get_default, []
    for name, policies in READ_BY.items():
        if options.policy not in policies and getattr(options, name) != default(name):
            flag = f"--{name.replace('_', '-')}"
            needed = " or ".join(f"--policy {policy}" for policy in policies)
            sentences.append(f"{flag} needs {needed}; got --policy {options.policy}.")
    if options.hard and options.stepwise is None:
        sentences.append("--hard is of the file that --stepwise FILE writes; give it, too.")
    return sentences


def _out_of_range(options: argparse.Namespace) -> list[str]:
    """Return a sentence for each number that is out of its range."""
    least = {"batch_size": 1, "max_tokens": 1, "minimum": 1, "batch": 1, "limit": 1, "seed": 0}
    sentences = [
        f"--{name.replace('_', '-')} must be at least {low}; got {value}."
        for name, low in least.items()
        if (value := getattr(options, name)) is not None and value < low
    ]
    if not 0 < options.temperature < float("inf"):
        sentences.append(f"--temperature must be above 0; got {options.temperature:g}.")
    if options.maximum < options.minimum:
        sentences.append(
            f"--maximum must be at least --minimum; got {options.maximum} and {options.minimum}."
        )
    return sentences


def _solutions(options: argparse.Namespace) -> tuple[Sequence[Chain], Sequence[str]]:
    """Return the solutions to label, and their answers."""
    from metaopt.data.records import column_names
    from metaopt.problems.process_reward.data.formats import Renaming, read
    from metaopt.problems.process_reward.labelling.answers import reference_answers

    renaming = Renaming(column_names(options.columns))
    chains = read(options.solutions, options.format, renaming, not options.lenient)
    chains = chains[: options.limit]
    if options.answers:
        answers = reference_answers(chains, options.answers)
    else:
        answers = reference_answers(chains, options.solutions, renaming)
    renaming.refuse_unused()
    return chains, answers


def limits_of(words: Sequence[str]) -> dict[str, float]:
    """Return {unit: amount} of words UNIT=AMOUNT."""
    try:
        return {unit: float(amount) for unit, _, amount in (w.partition("=") for w in words)}
    except ValueError:
        given = " ".join(words)
        raise ValueError(
            f"--limits needs UNIT=AMOUNT, as in lm_calls=20000; got {given}."
        ) from None


@contextmanager
def _absent_if_refused(folder: Path) -> Iterator[None]:
    """Leave no empty folder where there was none, if nothing comes of it."""
    absent = not folder.exists()
    try:
        yield
    except BaseException:
        if absent and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _check_writable(folder: Path, argument: str) -> None:
    """Make a folder and a file in it, which vanishes: loading a model and labelling take long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror}). Name another place as {argument}."
        ) from error


def _models(
    options: argparse.Namespace, steps: int, stack: ExitStack
) -> tuple[Policy, Judge | None, Client | None]:
    if options.policy == "arithmetic":
        from metaopt.problems.process_reward.data.arithmetic_policy import ArithmeticPolicy
        from metaopt.problems.process_reward.labelling.arithmetic import ArithmeticCompletion

        return ArithmeticCompletion(ArithmeticPolicy(options.seed)), None, None
    limits = limits_of(options.limits)
    if options.model is None:
        raise ValueError(f"--policy {options.policy} needs --model.")
    from metaopt.llm import Client
    from metaopt.problems.process_reward.labelling.llm import ClientCompletion, ClientJudge

    local = options.policy == "transformers"
    if local:
        from metaopt.llm.transformers_lm import TransformersLM

        model = TransformersLM(options.model, options.device, options.dtype, options.batch_size)
        lms: dict[str, LM] = {"policy": model}
    else:
        lms = _of_server(options, steps, bool(limits))
    client = Client(lms, concurrency=options.batch_size, limits=limits)
    stack.callback(client.close)
    policy = ClientCompletion(client, options.temperature, options.max_tokens, prefill=local)
    return policy, ClientJudge(client) if options.judge else None, client


def _of_server(options: argparse.Namespace, steps: int, limited: bool) -> dict[str, LM]:
    """Return the models of a server by role.

    Raises:
        ValueError: its key is missing, or it is on another machine and nothing limits the calls.
    """
    from metaopt.llm.authorisation import endpoint
    from metaopt.llm.openai_compatible import OpenAICompatibleLM

    if options.key_variable and not os.environ.get(options.key_variable):
        raise ValueError(
            f"--key-variable {options.key_variable}: the environment has no such variable."
        )
    host = urlsplit(options.base_url).hostname or ""
    if not limited and not endpoint(options.base_url, [host])[1]:
        least, most = steps * options.minimum, steps * options.maximum
        raise ValueError(
            f"The server of --base-url is on another machine and may cost something, so it "
            f"needs a budget: --limits lm_calls=20000, say. These solutions take {least:,} to "
            f"{most:,} calls of the policy."
        )
    names = {"policy": options.model, **({"judge": options.judge} if options.judge else {})}
    return {
        role: OpenAICompatibleLM(name, options.base_url, options.key_variable, hosts=[host])
        for role, name in names.items()
    }


def _summary(chains: Sequence[Chain], folder: Path) -> str:
    labels = [label for chain in chains for label in chain.labels]
    known = [label for label in labels if label is not None]
    rollouts = sum(count or 0 for chain in chains for count in chain.rollouts)
    lines = [
        f"{len(chains)} solutions, {len(known)} of {len(labels)} steps labelled with {rollouts} "
        f"rollouts; mean label {sum(known) / max(len(known), 1):.3f}."
    ]
    if len(known) < len(labels):
        lines.append(
            f"{len(labels) - len(known)} steps have no label, since no completion from there ended "
            f"by itself (raise --max-tokens) or the judge decided none."
        )
    if known and not any(known):
        lines.append(
            "No completion ended with the right answer. Compare the reference answers with how the "
            "policy writes its own: \\boxed{}, ####, Final answer:, Answer:, or the last number."
        )
    lines.append(
        f"Next: metaopt problem=domain_reweighting "
        f"data@problem.task.data=process_reward/process_files problem.task.data.train={folder} "
        f"problem.task.data.meta=FILE model@problem.task.scorer=process_reward/prm_features"
    )
    return "\n".join(lines)
