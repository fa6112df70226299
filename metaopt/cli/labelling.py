"""`metaopt-label`: step labels for solutions, by rollouts of a policy from each step."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaopt.llm import LM, Client
    from metaopt.problems.process_reward.data.formats import Chain
    from metaopt.problems.process_reward.labelling.rollouts import Judge, Policy

DESCRIPTION = """
Label every step of worked solutions with the share of a policy's continuations from there that end
at the right answer (Math-Shepherd, Wang et al., ACL 2024). Rollouts stop early where a step is
decided. A killed command goes on where it was when it is run again.

  metaopt-label solutions.jsonl labels --policy transformers --model Qwen/Qwen2.5-Math-1.5B-Instruct
  metaopt-label solutions.jsonl labels --policy server --model NAME   # vLLM, SGLang, a vendor
  metaopt-label docs/samples/unlabelled.jsonl labels --policy arithmetic   # simulated, offline

A line of solutions.jsonl is {"question": "...", "response": "step\\nstep", "answer": "..."}; every
format of step labels is read, too, with the answers in a file of their own (--answers). The
simulated solver knows questions such as "3 +2 *4" only: arithmetic modulo 5, from left to right.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake is answered with a sentence and status 2."""
    options = _parser().parse_args(arguments)
    from metaopt.llm import LMError

    try:
        _label(options)
    except (ValueError, OSError, ImportError, LMError) as error:
        print(f"metaopt-label: {error}", file=sys.stderr)
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
    add("--policy", choices=("transformers", "server", "arithmetic"), required=True)
    add("--model", help="folder, id of the hub, or the server's name of the model")
    add("--base-url", default="http://127.0.0.1:8000/v1", help="of the server")
    add("--key-variable", metavar="NAME", help="environment variable with the server's key")
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
    from metaopt.data.records import column_names
    from metaopt.problems.process_reward.data.formats import Renaming, harden, read, truncate, write
    from metaopt.problems.process_reward.labelling.answers import reference_answers
    from metaopt.problems.process_reward.labelling.rollouts import label_steps

    renaming = Renaming(column_names(options.columns))
    chains = read(options.solutions, options.format, renaming, not options.lenient)
    chains = chains[: options.limit]
    if options.answers:
        answers = reference_answers(chains, options.answers)
    else:
        answers = reference_answers(chains, options.solutions, renaming)
    renaming.refuse_unused()
    _check_writable(options.folder, "FOLDER")
    if options.stepwise is not None:
        _check_writable(options.stepwise.parent, "--stepwise FILE")
    with ExitStack() as stack:
        policy, judge, client = _models(options, stack)
        labelled = label_steps(
            chains,
            answers,
            policy,
            options.folder,
            judge,
            options.minimum,
            options.maximum,
            options.batch,
            options.seed,
            lambda done: print(f"{done} of {len(chains)} solutions", file=sys.stderr),
        )
    if options.stepwise is not None:
        rows = [truncate(chain) for chain in labelled]
        write(options.stepwise, [harden(c) for c in rows] if options.hard else rows, "stepwise")
    failures = [] if client is None else client.failures()
    print(*failures, _summary(labelled, options.folder), sep="\n")


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
    options: argparse.Namespace, stack: ExitStack
) -> tuple[Policy, Judge | None, Client | None]:
    if options.policy == "arithmetic":
        from metaopt.problems.process_reward.data.arithmetic_policy import ArithmeticPolicy
        from metaopt.problems.process_reward.labelling.arithmetic import ArithmeticCompletion

        return ArithmeticCompletion(ArithmeticPolicy(options.seed)), None, None
    if options.model is None:
        raise ValueError(f"--policy {options.policy} needs --model.")
    if options.judge and options.policy != "server":
        raise ValueError(f"--judge needs --policy server; got --policy {options.policy}.")
    from metaopt.llm import Client
    from metaopt.problems.process_reward.labelling.llm import ClientCompletion, ClientJudge

    lms: dict[str, LM] = {}
    local = options.policy == "transformers"
    if local:
        from metaopt.llm.transformers_lm import TransformersLM

        lms["policy"] = TransformersLM(
            options.model, options.device, options.dtype, options.batch_size
        )
    else:
        from metaopt.llm.openai_compatible import OpenAICompatibleLM

        names = {"policy": options.model, **({"judge": options.judge} if options.judge else {})}
        for role, name in names.items():
            lms[role] = OpenAICompatibleLM(name, options.base_url, options.key_variable)
    client = Client(lms, concurrency=options.batch_size)
    stack.callback(client.close)
    policy = ClientCompletion(client, options.temperature, options.max_tokens, prefill=local)
    return policy, ClientJudge(client) if options.judge else None, client


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
