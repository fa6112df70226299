"""Template evolution (AMIS), and the calibration of a judge."""

from metaopt.problems.template_evolution.calibration import JudgeCalibration
from metaopt.problems.template_evolution.evolution import TemplateEvolution

__all__ = ["JudgeCalibration", "TemplateEvolution"]
