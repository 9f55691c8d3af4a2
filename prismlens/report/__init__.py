"""What was measured on one model, kept together: tables, words, files; runs nothing."""

from prismlens.report.report import Report

__all__ = ["Report"]
