"""Pages that show what an evaluation found: one run, or several side by side."""

from vivid_monai.evaluation.report.comparison import write_comparison
from vivid_monai.evaluation.report.page import write_report

__all__ = ["write_comparison", "write_report"]
