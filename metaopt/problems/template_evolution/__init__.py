"""Template evolution: prompts and a judge's scoring template evolve, and the judge is calibrated.

Koo, Kim, Kim, "Align to Misalign: Automatic LLM Jailbreak with Meta-Optimized LLM Judges" (AMIS),
ICLR 2026, as an evaluation tool for judges on harmless tasks.

| paper | here |
|---|---|
| judge's scoring template, outer variable | a text: `metaopt.llm.rubric.Rubric.render` |
| dense score s in [1, 10] of Judge(q, T(q')) | `score` of a candidate, `candidates.Panel.judge` |
| binary outcome y of the checker | `outcome` of a candidate |
| alignment alpha, outer objective | `objectives.alignment`; others in `objectives.OBJECTIVES` |
| C initial candidates, half inherited | `candidates`, `inherited` |
| L inner steps, M new prompts each | `inner_steps`, `prompts_per_step` |
| K best prompts in context | `parents_in_context` |
| L' outer steps, K' templates in context | `outer_steps`, `templates_in_context` |

Read in this order: `evolution` (both levels evolve), `calibration` (recorded responses, the outer
level alone), `template_problem` (what they share: proposals), `candidates` (answered, checked,
judged, ranked), `scoring` (written scores and likelihoods), `prompts` (messages and their parsing),
`metaopt.llm.rubric`, `objectives`; then the tasks, `tasks`, `canary_world` with `canary_writers`
(simulated, of known truth), `arithmetic_solutions`, `criteria_judge` with `solution_criteria`; then
what a run hands over, `report`, with `report_files`, `figures` and `metaopt.report.judge_report`,
and `judge`, which loads it.
"""

from metaopt.problems.template_evolution.arithmetic_solutions import arithmetic_solutions
from metaopt.problems.template_evolution.calibration import JudgeCalibration
from metaopt.problems.template_evolution.canary_world import CanaryWorld
from metaopt.problems.template_evolution.criteria_judge import criteria_judge
from metaopt.problems.template_evolution.evolution import TemplateEvolution
from metaopt.problems.template_evolution.judge import Judge, load_judge
from metaopt.problems.template_evolution.scoring import (
    ExpectedChoice,
    ResponseLikelihood,
    WrittenScore,
)
from metaopt.problems.template_evolution.tasks import PromptFile

__all__ = [
    "CanaryWorld",
    "ExpectedChoice",
    "Judge",
    "JudgeCalibration",
    "PromptFile",
    "ResponseLikelihood",
    "TemplateEvolution",
    "WrittenScore",
    "arithmetic_solutions",
    "criteria_judge",
    "load_judge",
]
