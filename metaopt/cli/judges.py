"""The language model that judges by the rubric of a run: one that the command names, or its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt.files.errors import FolderError

if TYPE_CHECKING:
    from metaopt.llm import LM


def named_judge(words: Sequence[str]) -> LM:
    """Return the model of `--llm NAME KEY=VALUE ...`: that of `llm=NAME llm.KEY=VALUE` of a run.

    Raises:
        ConfigError: no such option or key, or one that is missing.
        ValueError: a word that is not KEY=VALUE, or an option that is no model.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    from metaopt.cli.composing import COMPOSITION, explanation
    from metaopt.cli.loading import CONFIG, composing
    from metaopt.files.errors import ConfigError

    name, *rest = words
    if wrong := [word for word in (f"llm={name}", *rest) if word.count("=") < 1 or "=" in name]:
        raise ValueError(
            f"--llm needs a NAME and words KEY=VALUE, as in --llm openai_compatible model=judge; "
            f"got {wrong[0].removeprefix('llm=')}."
        )
    try:
        with composing():
            config = compose(CONFIG, ["problem=ridge", f"+llm={name}", *(f"llm.{w}" for w in rest)])
            node = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except COMPOSITION as error:  # explained out here: a hint composes what could have been meant
        raise ConfigError(f"--llm {' '.join(words)}: {explanation(error)}") from error
    assert isinstance(node, dict)
    return _made(node["llm"], f"--llm {name}")


def own_judge(run: Path) -> LM | None:
    """Return the model that judged in a run, made again; `None` where no model of a user did.

    Raises:
        FolderError: the config names a server elsewhere, or code that is not metaopt's: a folder
            from elsewhere runs none and sends nothing unasked.
    """
    from metaopt.cli.trust import refuse_strange
    from metaopt.runs.folder import read_config

    problem = read_config(run).get("problem")
    roles = problem.get("roles") if isinstance(problem, Mapping) else None
    node = roles.get("judge") if isinstance(roles, Mapping) else None
    if not isinstance(node, Mapping) or "_target_" not in node:
        return None
    try:
        refuse_strange(run, {"problem": {"roles": {"judge": node}}})
    except FolderError as error:
        refused = "\n".join(str(error).splitlines()[1:2])
        raise FolderError(
            f"The judge that {run} names is not asked unless you name it: {refused.strip()}\nGive "
            "it yourself, as in --llm openai_compatible model=NAME base_url=URL hosts=[HOST]."
        ) from error
    return _made(dict(node), f"problem.roles.judge of {run}")


def _made(node: dict[str, Any], name: str) -> LM:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from metaopt.cli.composing import cause
    from metaopt.llm import LM

    try:
        lm = instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise cause(error) from error
    if not isinstance(lm, LM):
        raise ValueError(f"{name} is no language model that can judge by a rubric.")
    return lm
