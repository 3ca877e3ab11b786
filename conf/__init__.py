"""Hydra choices (the meaning lives in harness.config)."""
