"""One search at a time on a folder."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adept_tune.errors import SpecError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for the time of a block. The system lets go of it when the process dies, however it dies.

    Raises:
        SpecError: Another process holds it; names the process and its host. Or it cannot be written.
    """
    try:
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise SpecError(f"{folder}: cannot be locked ({error.strerror}); give a folder you may write in") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "an unknown process"
            raise SpecError(f"{folder}: in use by {owner}; wait for it, or give another folder") from None
        except OSError as error:
            raise SpecError(f"{folder}: cannot be locked ({error.strerror}); give one on another disk") from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        file.flush()
        yield
