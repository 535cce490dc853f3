"""Shows a search in MLflow, in a local database or on a server."""

import contextlib
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit, urlunsplit

from adept_tune.errors import TrackingError
from adept_tune.tracking.base import Event, SearchInfo, Tracker, without_credentials
from adept_tune.tracking.mlflow_store import database_path, open_store
from adept_tune.tracking.runs import RunStore, SearchRuns
from adept_tune.tracking.translate import translate
from adept_tune.tracking.writer import OrderedWriter

SERVER_SCHEMES = ("http", "https")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
OWN_SERVER = "http://127.0.0.1:5000"
CHECK_LIMIT_S = 3.0
CLOSE_LIMIT_S = 30.0
MAX_WARNINGS = 5


@dataclass(frozen=True)
class _Item:
    """One thing to write, and what to call it when it could not be written."""

    what: str
    write: Callable[[], None]


class MlflowTracker(Tracker):
    """Turns a search's events into MLflow runs.

    One thread does all writing, the import of MLflow and the making of a new database included, so that no
    call but `check` and `close` ever waits. While MLflow is away events are kept and tried again in their
    order.
    """

    def __init__(
        self,
        uri: str | None,
        experiment_dir: Path,
        experiment_name: str = "adept_tune",
        *,
        store: Callable[[], RunStore] | None = None,
        close_limit_s: float = CLOSE_LIMIT_S,
        first_pause_s: float = 0.5,
    ) -> None:
        """Remember where to write; nothing is touched before `prepare` or `start`.

        Args:
            uri: MLflow tracking URI; None for a database in the experiment folder.
            experiment_dir: The search's folder.
            experiment_name: MLflow experiment that holds the runs.
            store: Opens the store, in the writing thread; MLflow at `uri` when None.
            close_limit_s: How long `close` may go on writing.
            first_pause_s: Pause after the first write that failed; doubles up to 30 s.
        """
        folder = experiment_dir.absolute()
        self._own_uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.uri = uri or self._own_uri
        self._open_store = store or partial(open_store, self.uri, experiment_name, self._artifacts(folder))
        self._close_limit_s = close_limit_s
        self._info: SearchInfo | None = None
        self._closed = False
        self._store: RunStore | None = None
        self._runs: SearchRuns | None = None
        self._writer: OrderedWriter[_Item] = OrderedWriter(
            lambda item: item.write(), self._answers, first_pause_s=first_pause_s
        )

    @property
    def shown_uri(self) -> str:
        """The tracking URI without user name and password, for messages."""
        return without_credentials(self.uri)

    @property
    def view_hint(self) -> str:
        """How to look at the runs: an address, after the command that serves it where there is no server yet.

        The address is that of the trials once the search run is there, until then the server's.
        """
        if urlsplit(self.uri).scheme in SERVER_SCHEMES:
            return self._page(self.shown_uri)
        # With its job workers and four web workers the server takes 22 s to start, so 4.
        server = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {quote(sys.executable)} -m mlflow server --workers 1"
        return f"{server} --backend-store-uri {quote(self.shown_uri)}\nand open {self._page(OWN_SERVER)}"

    def check(self) -> None:
        """Find out, before the search starts, whether the tracking URI can work. Takes 3 seconds at most.

        Raises:
            TrackingError: The URI is of a kind MLflow cannot write to, no MLflow server answers there, or its file
                cannot be written. Databases on servers are not asked.
        """
        scheme = urlsplit(self.uri).scheme.partition("+")[0]
        if scheme not in SERVER_SCHEMES + DATABASE_SCHEMES:
            databases = ", ".join(f"{name}://" for name in DATABASE_SCHEMES)
            raise TrackingError(
                f"--tracking-uri {self.shown_uri}: runs are kept by a server (http://HOST:PORT) or a "
                f"database ({databases}); leave the option out, and MLFLOW_TRACKING_URI unset, to keep them in the "
                "experiment folder"
            )
        if scheme not in SERVER_SCHEMES:
            if scheme == "sqlite" and (fault := _file_fault(database_path(self.uri))):
                raise TrackingError(f"--tracking-uri {self.shown_uri}: {fault}; give a place that you may write to")
            return
        fault = _health_fault(self.uri, CHECK_LIMIT_S)
        if fault is not None:
            raise TrackingError(
                f"--tracking-uri {self.shown_uri}: {fault}; start the server (mlflow server --host 127.0.0.1 "
                "--port 5000), correct the URI, or keep the runs in the experiment folder: "
                f"--tracking-uri {self._own_uri}"
            )

    def prepare(self) -> None:
        """See `Tracker.prepare`. Import MLflow and make the database, while the search waits for its hosts."""
        self._writer.put(_Item("MLflow", self._prepare))
        self._writer.start()

    def start(self, info: SearchInfo) -> None:
        """See `Tracker.start`. Importing MLflow and making a database go on in the background."""
        self._info = info
        self._writer.put(_Item("the search run", partial(self._start, info)))
        self._writer.start()

    def record(self, event: Event) -> None:
        """See `Tracker.record`."""
        kept = {"time": time.time(), **event}
        what = f"{kept.get('event')} of trial {kept['trial']}" if "trial" in kept else str(kept.get("event"))
        self._writer.put(_Item(what, partial(self._record, kept)))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """See `Tracker.log_artifact`."""
        self._writer.put(_Item(f"artifact {path}", partial(self._log_artifact, Path(path), folder)))

    def log_adapter(self, folder: Path, input_columns: Sequence[str] = ()) -> None:
        """See `Tracker.log_adapter`."""
        columns = tuple(input_columns)
        self._writer.put(_Item(f"adapter {folder}", partial(self._log_adapter, Path(folder), columns)))

    def close(self, state: str) -> list[str]:
        """See `Tracker.close`. Goes on writing for `close_limit_s` at most."""
        if self._closed:
            return []
        self._closed = True
        if self._info is None:  # what was prepared is not left half made
            self._writer.close(self._close_limit_s)
            return []
        self._writer.put(_Item("the end of the search", lambda: self._opened().end_all(state)))
        left = self._writer.close(self._close_limit_s)
        return self._refusals() + self._leftovers(left)

    def _refusals(self) -> list[str]:
        """A line for each thing that MLflow would not take, the first few."""
        lines = [
            f"MLflow at {self.shown_uri} refused {item.what}: {_one_line(error)}"
            for item, error in self._writer.refused
        ]
        more = len(lines) - MAX_WARNINGS
        return lines if more <= 0 else [*lines[:MAX_WARNINGS], f"... and {more} more"]

    def _leftovers(self, left: Sequence[_Item]) -> list[str]:
        """A line for what was still unwritten when the time was over."""
        if not left:
            return []
        error = self._writer.last_error
        reason = "it is slow" if error is None else _one_line(error)
        return [
            f"MLflow at {self.shown_uri}: {len(left)} events could not be written, from {left[0].what} on "
            f"({reason}); the journal has them all"
        ]

    def _prepare(self) -> None:
        with contextlib.suppress(Exception):  # `start` tries again, and what it meets is told
            self._store = self._open_store()

    def _start(self, info: SearchInfo) -> None:
        self._store = self._store or self._open_store()
        runs = SearchRuns(self._store, info)
        runs.open()
        self._runs = runs

    def _record(self, event: Event) -> None:
        runs = self._opened()
        assert self._info is not None, "opened without a search"
        write = translate(event, self._info)
        if write is not None:
            runs.apply(write)

    def _log_artifact(self, path: Path, folder: str | None) -> None:
        runs = self._opened()
        runs.store.log_path(runs.parent_id, path, folder)

    def _log_adapter(self, folder: Path, input_columns: Sequence[str]) -> None:
        runs = self._opened()
        runs.store.log_adapter(runs.parent_id, folder, input_columns)

    def _opened(self) -> SearchRuns:
        if self._runs is None:
            raise LookupError("the search run could not be opened")
        return self._runs

    def _answers(self) -> bool:
        return self._runs is not None and self._runs.store.answers()

    def _page(self, server: str) -> str:
        return server if self._runs is None else f"{server.rstrip('/')}/{self._runs.page}"

    def _artifacts(self, folder: Path) -> Path | None:
        """Where a new experiment keeps artifacts: beside its database; a server has its own place."""
        scheme = urlsplit(self.uri).scheme
        if scheme in SERVER_SCHEMES:
            return None
        return (database_path(self.uri).parent if scheme == "sqlite" else folder) / "mlartifacts"


def _one_line(error: Exception) -> str:
    """The first line of an error, with its kind; MLflow's own name the whole URI."""
    first = without_credentials(str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {first[:300]}"


def _file_fault(database: Path) -> str | None:
    """Why a database file cannot be made or written, None where it can."""
    there = next(path for path in (database, *database.parents) if path.exists())
    if there == database and not there.is_file():
        return f"{there} is no file"
    if there != database and not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK) else f"{there} cannot be written"


def _health_fault(uri: str, limit_s: float) -> str | None:
    """Why no MLflow server answers at a URI, None when one does.

    Asked in a thread of its own, because looking up a name has no time limit.
    """
    faults: list[str | None] = []
    thread = threading.Thread(target=lambda: faults.append(_ask_health(uri, limit_s)), daemon=True)
    thread.start()
    thread.join(limit_s)
    return faults[0] if faults else f"no answer within {limit_s:g} s"


def _ask_health(uri: str, limit_s: float) -> str | None:
    parts = urlsplit(without_credentials(uri))
    bare = parts._replace(path=parts.path.rstrip("/") + "/health")
    try:
        with urllib.request.urlopen(urlunsplit(bare), timeout=limit_s) as answer:
            return None if answer.status == 200 else f"GET /health answered {answer.status}"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            return None  # a server that wants a password is there; MLflow sends it
        return f"GET /health answered {error.code}, which MLflow does not"
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None  # it is there, and MLflow has settings of its own for certificates
        return f"no server answers ({error.reason})"
    except (OSError, ValueError) as error:
        return f"no server answers ({error})"
