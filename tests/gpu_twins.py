"""Small problems of the GPU benchmark in Triton's interpreter, which must be chosen before Triton is imported."""

from __future__ import annotations

import json

import torch
from benchmarks.on_gpu import attention_cases, compare, layer_cases

CPU = torch.device("cpu")


def main() -> None:
    pairs = dict(layer_cases.cases(CPU, torch.float32, models=()))
    pairs |= attention_cases.cases(CPU, torch.float32, tasks=())
    found = {}
    for name, make in pairs.items():
        pair = make()
        found[name] = pair.off()
        for rival, call in pair.rivals.items():
            found[f"{name}, {rival}"] = compare.off(pair.ours(), call(), pair.dtype)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
