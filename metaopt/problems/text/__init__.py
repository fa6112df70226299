"""What families of texts share: a client of language models, its records, its answers.

A package and not a family: `problem` has the base class with the records of what was paid for,
`asking` how a batch of requests is answered or refused.
"""

from metaopt.problems.text.asking import ask, whole, whole_lines
from metaopt.problems.text.problem import Answers, TextProblem, TextTrial

__all__ = ["Answers", "TextProblem", "TextTrial", "ask", "whole", "whole_lines"]
