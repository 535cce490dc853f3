"""Keeps MLflow's chatter off the terminal. `quiet` comes before the import of MLflow."""

import logging
import os
import warnings

SETTINGS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # offline is normal, and nothing leaves this machine unasked
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # `OrderedWriter` retries, and can be told to stop
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
}
"""Environment variables, for this process and its children; what the user has set stays."""

LOGGERS = ("alembic", "mlflow")

WARNINGS = (
    "The ``noload`` loader strategy is deprecated",  # MLflow 3.17 on SQLAlchemy 2.1, opening a database
    ".*Any type hint is inferred as AnyType",  # MLflow 3.17 about its own classes, importing mlflow.pyfunc
    ".*An input example was not provided",  # it would load the backbone once more, only to try the signature
)
"""Warnings that are MLflow's to mend. Ignored, they cannot fail a write under `python -W error` either."""


def quiet() -> None:
    """Silence what MLflow logs, prints and warns of. Repeating it is harmless."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def quiet_loggers() -> None:
    """Let only errors through; to be called after MLflow's import, which sets its own levels."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
