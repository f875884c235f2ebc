"""Workaround for torchvision wheels that do not match torch; it does nothing where nothing is wrong.

Call it before the first import of torchvision or transformers. The module must not import torch or torchvision by itself: whoever only
reads files or frames never pays for it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The operators that torchvision registers shape functions for without asking whether its compiled part was loaded."""


def fix_torchvision() -> bool:
    """Make `import torchvision` work where its compiled part does not load, and return whether that was needed.

    The registry's torchvision wheel is built for CUDA. Next to a CPU-only torch its `_C` library finds no CUDA libraries, torchvision
    goes on without it, and then registers shape functions for undeclared operators: a RuntimeError with which every transformers model
    class fails to import. Declaring the operators is enough, since only the Python transforms are used here. Where torchvision is absent
    or already imported, torch is a CUDA build, or the library loads, nothing is done; calling twice is safe. For lmms-eval's own command
    line there is `python -m harness lmms-eval`.
    """
    if "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    import torch

    if torch.version.cuda:  # a build for CUDA brings the libraries that torchvision's part looks for
        return False
    libraries = [
        library
        for folder in spec.submodule_search_locations
        for library in sorted(Path(folder).glob("_C.*"))
        if library.suffix in {".so", ".pyd", ".dylib"}
    ]
    for library in libraries:
        try:
            torch.ops.load_library(str(library))  # what torchvision does itself a moment later; loading twice is one load
        except (OSError, RuntimeError):
            continue
        return False
    missing = [name for name in _SCHEMAS if not _declared(name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMAS[name])
    return bool(missing)


def _declared(name: str) -> bool:
    import torch

    try:
        getattr(torch.ops.torchvision, name)
    except (AttributeError, RuntimeError):
        return False
    return True
