"""The page in a run directory: how the run learned, how well it does, and its inputs."""

from train.report.report_page import write_report

__all__ = ["write_report"]
