"""Tables and figures from the folders of finished runs: the command `metaopt-report`."""

from metaopt.report.collect import Cell, Collection, ReportError, collect

__all__ = ["Cell", "Collection", "ReportError", "collect"]
