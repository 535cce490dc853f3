"""Ask the Hub, or find out within seconds that it cannot be asked.

Left alone, the ordinary libraries retry an unreachable Hub for 23 s (datasets) to 48 s (transformers) before
they look into their own cache. So the first access in a process sends one short request: any HTTP answer
means the Hub is there; silence switches those libraries to their offline mode, which looks there at once.
"""

import errno
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adept_tune.errors import HubError

DEADLINE_S = 3.0

# Why each asked endpoint gave no answer; None when it gave one. One question a process is enough.
_answers: dict[str, str | None] = {}


def endpoint() -> str:
    """Return the URL of the Hub: `HF_ENDPOINT`, or https://huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def prepare() -> bool:
    """Decide whether the Hub may be asked, and make the ordinary libraries behave accordingly.

    `HF_HUB_OFFLINE=1` is honoured without a request. So is `HF_HUB_OFFLINE=0`, set by hand: that is the way
    out for a Hub which is there but slower than the deadline. Otherwise the Hub is asked once a process.

    Returns:
        True if the Hub may be asked; False if only local caches can answer.
    """
    from huggingface_hub import constants

    setting = os.environ.get("HF_HUB_OFFLINE", "").strip().upper()
    if constants.is_offline_mode() or setting in constants.ENV_VARS_TRUE_VALUES:
        go_offline()  # the variable may have been set after the libraries were imported
        return False
    if setting:
        return True
    url = endpoint()
    if url not in _answers:
        _answers[url] = _silence(url, DEADLINE_S)
    if _answers[url] is None:
        return True
    go_offline()
    return False


def go_offline() -> None:
    """Send huggingface_hub, transformers and datasets to their caches, here and in processes started here."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Both read the variable on import only; transformers asks huggingface_hub each time.
    for module, name in (
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_DATASETS_OFFLINE"),
    ):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)


@contextmanager
def access(wanted: str, remedy: str) -> Iterator[bool]:
    """Guard a block that loads something from the Hub or its local cache, and nothing else.

    Args:
        wanted: What is loaded, as the subject of a sentence: "model google-t5/t5-small".
        remedy: What the user can give instead: "--model DIR".

    Yields:
        Whether the Hub may be asked (see `prepare`).

    Raises:
        HubError: The thing is not cached and the Hub cannot be reached, or the Hub does not have it.
    """
    online = prepare()
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # A request that fails raises OSError (ConnectionError and "offline" among them) or an error of the HTTP
    # client. That client's package changed its name between versions of huggingface_hub, so ask which it is.
    failures: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__, HFValidationError)
    try:
        yield online
    except failures as exc:
        raise explain(exc, wanted, remedy) from exc


def explain(exc: BaseException, wanted: str, remedy: str) -> HubError:
    """Turn a failure of the ordinary libraries into one message: unreachable, not there, or something else.

    Args:
        exc: The failure; its causes are looked at too.
        wanted: See `access`.
        remedy: See `access`.
    """
    from huggingface_hub import constants

    chain = _chain(exc)
    names = {cls.__name__ for link in chain for cls in type(link).__mro__}
    where = f"the Hub at {endpoint()}"
    cache = f"{wanted} is not in the local cache ({constants.HF_HOME})"
    # A full disk or a folder that may not be read is not the network's fault.
    trouble = next((link for link in chain if _is_local_trouble(link)), None)
    if trouble is not None:
        return HubError(f"{wanted} could not be loaded ({_one_line(trouble)}); mend that, or give {remedy}")
    if "HFValidationError" in names:
        return HubError(f"{wanted}: not a name that {where} can have; mend it, or give {remedy}")
    if "GatedRepoError" in names:
        return HubError(
            f"{wanted} is gated on {where}; accept its terms there and log in (hf auth login), or give {remedy}"
        )
    if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "DatasetNotFoundError"}:
        return HubError(
            f"{wanted} does not exist on {where}, or is private; "
            f"check the name, log in (hf auth login), or give {remedy}"
        )
    if constants.is_offline_mode():
        return HubError(f"{cache}, and {_why_offline()}, or give {remedy}")
    if names & {"ConnectionError", "LocalEntryNotFoundError", "TransportError"}:
        why = _one_line(chain[-1])
        return HubError(f"{cache}, and {where} could not be reached ({why}); try again, or give {remedy}")
    return HubError(f"{wanted} could not be loaded from {where} ({_one_line(exc)}); give {remedy}")


def _silence(url: str, deadline_s: float) -> str | None:
    """Ask `url` once; return why there was no HTTP answer in time, or None when there was one."""
    from huggingface_hub import get_session

    session: Any = get_session()  # the client that would do the work: its proxies, its certificates
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            session.head(url, timeout=deadline_s, follow_redirects=False)
            answer.put(None)
        except Exception as exc:
            answer.put(_one_line(exc))

    # The client's timeout does not cover a name look-up that hangs, and such a call cannot be interrupted:
    # it is left behind in a daemon thread, which does not hold up the end of the process.
    threading.Thread(target=ask, name="is-the-hub-there", daemon=True).start()
    try:
        return answer.get(timeout=deadline_s)
    except queue.Empty:
        return f"no answer within {deadline_s:g} s; HF_HUB_OFFLINE=0 waits as long as it takes"


def _why_offline() -> str:
    """Why the libraries are in offline mode and how to leave it, as half a sentence."""
    reason = _answers.get(endpoint())
    if reason:
        return f"the Hub at {endpoint()} could not be reached ({reason}); connect and try again"
    return f"HF_HUB_OFFLINE is set, so the Hub at {endpoint()} was not asked; unset it"


def _chain(exc: BaseException) -> list[BaseException]:
    """`exc`, its cause, the cause of that, and so on."""
    chain: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _is_local_trouble(exc: BaseException) -> bool:
    """Whether a disk or a folder failed; a firewall may also answer EPERM, but then names no file."""
    if not isinstance(exc, OSError):
        return False
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return full or (isinstance(exc, PermissionError) and exc.filename is not None)


def _one_line(exc: BaseException) -> str:
    """The kind of an error and its message on one line, short enough for a sentence."""
    text = " ".join(str(exc).split())
    name = type(exc).__name__
    return f"{name}: {text[:200]}" if text else name
