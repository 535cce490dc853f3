"""Which adept_tune this is: its version and a digest of its source, which tells one edit from another."""

import hashlib
from pathlib import Path

import adept_tune


def own_version() -> str:
    """Version and digest of the package as it is imported here: ``0.1.0, source 1f2e3d4c``."""
    package = Path(adept_tune.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return f"{adept_tune.__version__}, source {digest.hexdigest()[:8]}"
