"""Every fused operator of this machine's device on the shapes of real models: the verdict of the trust gate.

python benchmarks/check_kernels.py --sizes qwen2.5-0.5b qwen2.5-7b --dtype bf16
"""

from __future__ import annotations

import os

import torch
from report import parser_of
from stepping import DTYPES
from workload import SIZES, draw_lengths, model_config

from swiftlet.commands.operators import cases
from swiftlet.device.spec import open_device
from swiftlet.device.trust import try_kernel


def main() -> None:
    """Print a line a case; leave with 1 where an operator differs from its definition."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["qwen2.5-0.5b", "qwen2.5-7b"])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    options = parser.parse_args()
    device = open_device(options.device, local_rank=0, environ=os.environ)
    print(
        f"{device.name}, {device.version}, torch {torch.__version__}: {', '.join(device.kernels) or 'none'}"
    )
    bad = 0
    for size in options.sizes:
        lengths = draw_lengths(12)
        for case in cases(model_config(SIZES[size], 151936), lengths):
            if case.operator not in device.kernels:
                continue
            verdict = try_kernel(
                device.kernels[case.operator],
                case,
                DTYPES[options.dtype],
                device.torch_device,
                device.kernel_errors,
            )
            bad += not verdict.is_good
            print(
                f"{size} {case.operator} {case.shapes[0]}: {'good' if verdict.is_good else 'BAD'}, {verdict}"
            )
    print(f"{bad} bad")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
