"""What problems that search for a judge's template share: proposals, examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import Client, LMError, Parameters, Request
from metaopt.problems.template_evolution.prompts import Example, quotes, read_template, rewriting
from metaopt.problems.template_evolution.scoring import Scoring, WrittenScore
from metaopt.problems.text import TextProblem, TextTrial


class TemplateProblem(TextProblem):
    """A problem whose outer variable is a template, rewritten by the role template of a client.

    Args:
        client: the language models; what is paid for is in its records.
        creative: how the role template answers.
        templates_in_context: number of templates shown to it, >= 1.
        examples: misjudged responses of each outcome shown to it, >= 0; 0 is a blind rewriter.
        quoting: whether a template may quote a response that was shown: people read templates.
        examiner: a second client, which charges nothing, or `None`.
        authorisation: of the models, for the records.
        scoring: what the judge is asked, a written score where it is not given.
    """

    def __init__(
        self,
        client: Client,
        creative: Parameters,
        templates_in_context: int,
        examples: int,
        quoting: bool,
        examiner: Client | None = None,
        authorisation: Mapping[str, str] | None = None,
        scoring: Scoring | None = None,
    ) -> None:
        super().__init__(client, examiner, authorisation)
        self.creative, self.scoring = creative, scoring or WrittenScore()
        self.templates_in_context = templates_in_context
        self.examples, self.quoting = examples, quoting
        check_ranges(self, "templates_in_context >= 1", "examples >= 0")

    @abstractmethod
    def judged_examples(self, parents: Sequence[TextTrial]) -> list[Example]:
        """Return responses of known outcome with the scores of the first parent's template."""

    def propose(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return a new template by the role template; the best one again where it writes none.

        It is not asked where the judge does not read the template.
        """
        if not self.scoring.reads_template:
            return parents[0].outer
        shown = [
            (p.outer, 100 * (1 - min(p.value, 1.0))) for p in parents[: self.templates_in_context]
        ]
        examples = misjudged(self.judged_examples(parents), self.examples) if self.examples else []
        secrets = [] if self.quoting else [e.response for e in examples]
        for attempt in range(3):
            rollout = fold(key, "template", attempt) % 2**31
            request = Request("template", rewriting(shown, examples), self.creative, rollout)
            (reply,) = self.client.ask_all([request])
            template = None if isinstance(reply, LMError) else read_template(reply.text)
            known = template is None or any(template == p.outer for p in parents)
            if template and not known and not quotes(template, secrets):
                return template
        return parents[0].outer


def misjudged(examples: Iterable[Example], most: int) -> list[Example]:
    """Return up to `most` examples of each outcome, successes first, those furthest off first.

    Ties keep their order; an example without a score is misjudged by nobody.
    """
    scored = [(e.score, e) for e in examples if e.score is not None]
    worst = []
    for outcome, sign in ((True, 1), (False, -1)):
        side = [(sign * score, e) for score, e in scored if e.outcome is outcome]
        worst += [e for _, e in sorted(side, key=lambda pair: pair[0])[:most]]
    return worst
