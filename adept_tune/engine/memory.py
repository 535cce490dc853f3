"""Running out of memory, and what to do about it."""

import torch

_CPU_SIGNS = ("not enough memory", "can't allocate memory")  # torch's allocator on a CPU raises a plain RuntimeError


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


def release(device: torch.device) -> None:
    """Give cached blocks back; they were cut for passes that did not fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
