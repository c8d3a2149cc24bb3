"""Small problems of the GPU benchmark in Triton's interpreter, which must be chosen before Triton is imported."""

from __future__ import annotations

import json

import torch
from benchmarks.on_gpu import attention_cases, layer_cases

CPU = torch.device("cpu")


def main() -> None:
    pairs = dict(layer_cases.cases(CPU, torch.float32, models=()))
    pairs |= attention_cases.cases(CPU, torch.float32, tasks=())
    print(json.dumps({name: make().off() for name, make in pairs.items()}))


if __name__ == "__main__":
    main()
