"""What the command lines share: exit codes and how a message reaches a person."""

import contextlib
import errno
import signal
import sys
from collections.abc import Callable
from types import FrameType

from adept_tune.errors import AdeptError, StoppedError

DONE, STOPPED, BAD_INPUT, NOTHING_FINISHED, INTERRUPTED = 0, 1, 2, 3, 130


def treat_termination_as_interrupt() -> None:
    """Let SIGTERM do what Ctrl-C does. Libraries that set their own handler call for a second time."""
    with contextlib.suppress(ValueError):  # signals can only be set in the main thread
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Hand a SIGTERM to whoever handles Ctrl-C now; a background shell has it ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def guarded(run: Callable[[], int]) -> int:
    """Run a command; bad input becomes one message and exit code 2, what stops a search 1, an interrupt 130."""
    treat_termination_as_interrupt()
    try:
        return run()
    except AdeptError as error:
        print(f"error: {error}", file=sys.stderr)
        return STOPPED if isinstance(error, StoppedError) else BAD_INPUT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}; make room, and give the same command again (a search with --resume)", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("interrupted; what was done is kept", file=sys.stderr)
        return INTERRUPTED
