"""The page in a run directory: how the run learned, how well it does, and its inputs."""

from train.report.report_page import REPORT_NAME, write_report

__all__ = ["REPORT_NAME", "write_report"]
