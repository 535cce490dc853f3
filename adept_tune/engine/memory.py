"""How much memory a pass takes, running out of it, and what to do about it."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from adept_tune.backbones.base import Backbone
from adept_tune.engine.lanes import Lanes

A = TypeVar("A")

_CPU_SIGNS = ("not enough memory", "can't allocate memory")  # torch's allocator on a CPU raises a plain RuntimeError


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


class TooLarge(Exception):  # noqa: N818  # no error: there is a way
    """Memory ran out in a pass that can be made to take less.

    Attributes:
        num_rows: Of the pass.
        num_tokens: Of the pass, padding included.
    """

    def __init__(self, num_rows: int, num_tokens: int) -> None:
        super().__init__(f"a pass of {num_tokens:,} tokens")
        self.num_rows = num_rows
        self.num_tokens = num_tokens


def nothing() -> bool:
    """There is nothing that could be forgotten."""
    return False


@contextmanager
def splitting(num_rows: int, num_tokens: int, another_way: bool) -> Iterator[None]:
    """Make a pass.

    Args:
        num_rows: Of the pass.
        num_tokens: Of the pass, padding included.
        another_way: Whether a pass of one row can still be made to take less.

    Raises:
        TooLarge: Memory ran out, and there is more than one row or another way.
    """
    try:
        yield
    except Exception as error:
        if not (num_rows > 1 or another_way) or not ran_out(error):
            raise
        raise TooLarge(num_rows, num_tokens) from None


class PassLimits:
    """How much goes into a training pass; whenever memory runs out it is less, and stays so.

    What can be forgotten goes first, then lanes are halved, then the tokens of a pass; where one row is too much,
    gradient checkpointing is the last resort, since splitting a batch costs less than a second forward.

    Args:
        lanes: Where passes run.
        tokens_per_pass: Most tokens of a pass, padding included, where it has more than one row; None fuses all.
    """

    def __init__(self, lanes: Lanes, tokens_per_pass: int | None) -> None:
        self.lanes = lanes
        self.tokens_per_pass = tokens_per_pass
        self._recompute = False

    def making(self, backbone: Backbone, num_rows: int, num_tokens: int) -> AbstractContextManager[None]:
        """Make one pass of a step; see `splitting`."""
        another_way = self.lanes.count > 1 or (backbone.may_recompute and not self._recompute)
        return splitting(num_rows, num_tokens, another_way)

    @property
    def recomputing(self) -> bool:
        """Whether passes are made with gradient checkpointing."""
        return self._recompute

    def keep(self, backbone: Backbone, passes: Callable[[], A], forget: Callable[[], bool] = nothing) -> A:
        """Make all passes of a step, and where one does not fit, all anew: without what can be forgotten, else within
        less."""
        given, forgotten = self.tokens_per_pass, False
        while True:
            try:
                with backbone.recomputing(self._recompute):
                    return passes()
            except TooLarge as large:
                if not forgotten and forget():
                    forgotten = True
                elif self.lanes.halve():
                    pass
                elif large.num_rows > 1:
                    self.tokens_per_pass = large.num_tokens // 2
                else:
                    self._recompute, self.tokens_per_pass = True, given
            release(backbone.device)


def release(device: torch.device) -> None:
    """Give cached blocks back; they were cut for passes that did not fit."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim(device)


def trim(device: torch.device) -> None:
    """On a CPU, give the machine back what lies between blocks in use: passes of all lengths leave gigabytes there."""
    if device.type == "cpu" and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)


def keep_freed() -> None:
    """Let this process keep what it frees, until `trim`: glibc gives large blocks back at once, and the kernel then
    clears every page of the next pass anew, a tenth of a narrow model's step on a CPU. Of a thread's memory up to
    64 MiB stay even then."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, 2**26)
        if not libc.mallopt(_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most of an older glibc


PROBE_ROWS = 8, 32  # of the passes that tell how much memory a token takes


@dataclass(frozen=True)
class Need:
    """Memory of a pass on top of what is always there: close to affine in its tokens.

    Attributes:
        fixed_bytes: Whatever the pass is.
        token_bytes: For each token, padding included.
    """

    fixed_bytes: float
    token_bytes: float

    @classmethod
    def measured(cls, small: tuple[int, float], large: tuple[int, float]) -> "Need":
        """From tokens and bytes of two passes."""
        per_token = max(0.0, (large[1] - small[1]) / (large[0] - small[0]))
        return cls(max(0.0, small[1] - per_token * small[0]), per_token)

    @classmethod
    def of_passes(cls, run: Callable[[int], int], device: torch.device) -> "Need":
        """From two passes; `run` makes one of so many rows and gives its tokens."""
        found = []
        for num_rows in PROBE_ROWS:
            run(num_rows)  # the first of a size pays for work space
            found.append(growth(lambda n=num_rows: run(n), device))  # type: ignore[misc]
        return cls.measured(*found)

    def of(self, tokens: int) -> float:
        """Bytes of a pass."""
        return self.fixed_bytes + self.token_bytes * tokens

    def tokens_within(self, num_bytes: float) -> int | None:
        """Most tokens of a pass that takes no more than some bytes; None where there is no limit."""
        return max(1, int((num_bytes - self.fixed_bytes) / self.token_bytes)) if self.token_bytes else None


def free_bytes(device: torch.device) -> float:
    """What a pass may take: of the GPU, or of the machine, of which a container or a job has a part."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return min(_told("/proc/meminfo", "MemAvailable"), left_to_group(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> float:
    """Most memory since it was last forgotten: of the GPU, or resident of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _told("/proc/self/status", "VmHWM")


def growth(run: Callable[[], A], device: torch.device) -> tuple[A, float]:
    """What something gives, and the most memory it takes on top of what is there; 0 where the system does not tell."""
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        return run(), 0.0
    release(device)  # what is kept for reuse would not count
    before = taken_bytes(device)
    forget_peak(device)
    return run(), peak_bytes(device) - before


def taken_bytes(device: torch.device) -> float:
    """Memory in use: of the GPU, or resident of this process."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return _told("/proc/self/status", "VmRSS")


def left_to_group(groups: Path, root: Path) -> float:
    """Bytes that the control groups of this process, its container's or its job's, may still take; infinity where
    nothing limits them.

    Args:
        groups: Where the kernel tells them (cgroups(7)), of either version.
        root: Where their files lie.
    """
    left = float("inf")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files, cached = root, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            top, files = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cached = "total_inactive_file"
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # not seen from a container, or no limit
                most, taken = (int((group / file).read_text()) for file in files)
                stat = dict(each.split() for each in (group / "memory.stat").read_text().splitlines())
                left = min(left, most - taken + float(stat.get(cached, 0)))
            if group == top:
                break
    return max(0.0, left)


def _told(file: str, key: str) -> float:
    """Bytes that the kernel tells of a machine or a process."""
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(key)) * 1024.0
