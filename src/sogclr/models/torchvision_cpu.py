"""Import timm where torchvision's compiled operators cannot load.

The PyPI wheel of torchvision is a CUDA build. Beside a CPU-only torch its C++ operators stay unregistered and
`import torchvision`, hence `import timm`, fails with `operator torchvision::nms does not exist`. Nothing here uses
those operators, so after that very error, and only then, their schemas are declared and the import is repeated.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

_MISSING = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_timm() -> ModuleType:
    """Import and return timm, also where torchvision was built for another torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
        import torch

        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]
    with warnings.catch_warnings():
        # tqdm's in a notebook, for bars that nothing here draws
        warnings.filterwarnings("ignore", "IProgress not found")
        import timm

    return timm
