"""Hydra launcher plug-in."""
