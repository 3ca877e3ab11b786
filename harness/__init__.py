"""Sievebench: which data selector really beats random, at which budget, on which backbone, at what cost."""

__version__ = "0.1.0"
