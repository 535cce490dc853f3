"""The record people look at: a search's events in, MLflow runs out.

The only package that imports MLflow, and only in the thread that writes: importing it costs a second and a
new database several more, which the search spends starting up. Knows neither Ray nor torch.

    tracker = MlflowTracker(uri=None, experiment_dir=folder)
    tracker.check()                      # a dead server is told now, before any trial
    tracker.start(info)
    tracker.record({"event": "proposed", "trial": 0, "params": {...}, "time": ...})
    for warning in tracker.close("FINISHED"): ...
"""

from adept_tune.tracking.base import NullTracker, SearchInfo, Tracker, without_credentials
from adept_tune.tracking.environment import git_commit, versions
from adept_tune.tracking.mlflow_tracker import MlflowTracker
from adept_tune.tracking.model import log_adapter

__all__ = [
    "MlflowTracker",
    "NullTracker",
    "SearchInfo",
    "Tracker",
    "git_commit",
    "log_adapter",
    "versions",
    "without_credentials",
]
