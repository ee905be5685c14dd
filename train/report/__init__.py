"""The page that a run leaves in its directory: how it learned, how well, and of what it is made."""

from train.report.page import REPORT_NAME, write_report

__all__ = ["REPORT_NAME", "write_report"]
