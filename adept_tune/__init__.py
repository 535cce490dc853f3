"""Search the hyper-parameters of ADePT (Adaptive Decomposed Prompt Tuning) on one device or a cluster.

Importing this package loads neither torch nor Ray.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_adapter"]

if TYPE_CHECKING:
    from adept_tune.adapter import load_adapter


def __getattr__(name: str) -> Any:
    if name == "load_adapter":
        from adept_tune.adapter import load_adapter

        return load_adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
