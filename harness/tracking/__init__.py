"""Showing a sweep to an experiment tracker: a sink that is fed from the store, and never in an experiment's way.

Everything a tracker shows is computed from the store when it is pushed, with ids that depend on nothing else; so
losing what a tracker has costs nothing, and pushing again restores it.
"""

from harness.tracking.settings import Tracking
from harness.tracking.track import track

__all__ = ["Tracking", "track"]
