"""Benchmarks through lmms-eval: adapter, tasks, validation, rescoring."""
