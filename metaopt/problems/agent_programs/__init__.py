"""Agent programs: which block (vote, refine, debate, ...) answers which question, by search.

Ke et al., MAS-ZERO: Designing Multi-Agent Systems with Zero Supervision, arXiv 2505.14996, and Gao
et al., FlowReasoner: Reinforcing Query-Level Meta-Agents, arXiv 2504.15257 (its search, without the
reinforcement learning), with cost-matched self-consistency as the control.

| papers | here |
|---|---|
| multi-agent system, workflow | the outer variable: the text of a `programs.Program` |
| building blocks: CoT, self-consistency, reflexion, debate | solve, vote, refine/critique, debate |
| meta-agent, meta-design | the role rewriter, `rewriting.Rewriting` |
| meta-feedback: what sub-agents could not do | errors by questions, `evidence` |
| self-verification | select(judge, ...) |
| performance and cost of a workflow | F = error + `call_price` * calls |

Read in this order: `programs`, `grammar`, `parsing` (the language), `workers` and `execution` (what
runs it), `simulated_workers` with `expected` and `oracle` (all is known), `recorded_workers`,
`live_workers` with `worker_prompts`, `questions` and `features`; then the search, `problem`,
`rewriting`, `simulated_rewriter`, `drawing`, `evidence`, `baselines`; then `statistics`, `report`
and `figures`.
"""

from metaopt.problems.agent_programs.grammar import Grammar, InvalidProgram
from metaopt.problems.agent_programs.live_workers import LiveWorkers
from metaopt.problems.agent_programs.parsing import parse
from metaopt.problems.agent_programs.problem import AgentPrograms
from metaopt.problems.agent_programs.programs import Program
from metaopt.problems.agent_programs.questions import question_file
from metaopt.problems.agent_programs.recorded_workers import RecordedWorkers
from metaopt.problems.agent_programs.simulated_workers import SimulatedWorkers

__all__ = [
    "AgentPrograms", "Grammar", "InvalidProgram", "LiveWorkers", "Program", "RecordedWorkers",
    "SimulatedWorkers", "parse", "question_file",
]  # fmt: skip
