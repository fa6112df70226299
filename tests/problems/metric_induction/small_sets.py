"""A data set of two trajectories, and readers that answer as a table says."""

from metaopt.llm import Client, Parameters, SimulatedLM
from metaopt.problems.metric_induction import FeedbackWorld, MetricInduction, prompts
from metaopt.problems.metric_induction.data import Instance
from metaopt.problems.metric_induction.measuring import Measuring
from metaopt.problems.metric_induction.metric_set import Metric, parse
from metaopt.problems.metric_induction.prompts import Aspect

TONE, PLAN = Metric("tone", "How it speaks."), Metric("plan", "Whether it plans.")
INSTANCES = [
    Instance("run one", "", (Aspect("it was polite", 1), Aspect("it had no plan", -1))),
    Instance("run two", "", (Aspect("it was rude", -1),)),
]
RATINGS = {("run one", "tone"): 1, ("run one", "plan"): 0, ("run two", "tone"): 1,
           ("run two", "plan"): -1}  # fmt: skip
"""Two trajectories by two metrics."""


def judge(role, messages, key):
    text = messages[-1]["content"]
    (metric,) = parse(text.partition("<trajectory>")[0])
    rated = RATINGS[prompts.shown_trajectory(text), metric.name.partition(" ")[0]]
    return f"Rating: {rated:+d}"


def grounder(role, messages, key):
    """Match every aspect to the first trait of its subject, whatever its sign."""
    text = messages[-1]["content"]
    traits = [trait.text.partition(":")[0] for trait in prompts.shown_traits(text)]
    lines = []
    for number, aspect in enumerate(prompts.shown_aspects(text), 1):
        subject = "plan" if "plan" in aspect.text else "tone"
        fitting = (i for i, name in enumerate(traits, 1) if name.partition(" ")[0] == subject)
        lines.append(f"{number}: {next(fitting, 'none')}")
    return "\n".join(lines)


def measuring(**lms):
    roles = {"judge": judge, "grounder": grounder, **lms}
    return Measuring(Client({r: SimulatedLM(a) for r, a in roles.items()}), Parameters())


def measured(metrics, **lms):
    aspects = [instance.aspects for instance in INSTANCES]
    return measuring(**lms).measure(metrics, INSTANCES, aspects)


def problem(trajectories=12, error=0.1, seed=0, **options):
    return MetricInduction(FeedbackWorld(trajectories, seed, error), seed=seed, **options)
