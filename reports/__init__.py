"""Summaries, statistics, tables and pages over tidy rows."""
