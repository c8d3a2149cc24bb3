"""Stands in for llama-diffusion-cli: reads a GGUF file as llama.cpp reads LLaDA, and says what the tool says."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def tensors_of(reader: Any) -> dict[str, Array]:
    """All tensors in float32, as [outputs, inputs]."""
    found = {}
    for each in reader.tensors:
        data = np.array(each.data)
        if each.tensor_type == gguf.GGMLQuantizationType.BF16:
            data = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        found[each.name] = data.reshape(tuple(reversed(each.shape.tolist())))
    return found


def rotated(x: Array, base: float) -> Array:
    """[rows, heads, dim]: neighbours are pairs."""
    rows, _, dim = x.shape
    angles = np.arange(rows)[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def logits(ids: list[int], weights: dict[str, Array], facts: dict[str, Any]) -> Array:
    heads, eps = facts["attention.head_count"], facts["attention.layer_norm_rms_epsilon"]
    x = weights["token_embd.weight"][ids]

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]

    for layer in range(facts["block_count"]):
        at = f"blk.{layer}"
        h = norm(x, f"{at}.attn_norm")
        q, k, v = ((h @ weights[f"{at}.attn_{kind}.weight"].T).reshape(len(ids), heads, -1) for kind in "qkv")
        q, k = rotated(q, facts["rope.freq_base"]), rotated(k, facts["rope.freq_base"])
        shares = softmax(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]))
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(len(ids), -1)
        x = x + mixed @ weights[f"{at}.attn_output.weight"].T
        h = norm(x, f"{at}.ffn_norm")
        gate, up = (h @ weights[f"{at}.ffn_{kind}.weight"].T for kind in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{at}.ffn_down.weight"].T
    return norm(x, "output_norm") @ weights["output.weight"].T


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("-m", "-p", "-c", "-b", "-ub", "-t", "-tb", "--diffusion-steps", "--diffusion-eps"):
        parser.add_argument(name, required=True)
    for name in ("--diffusion-algorithm", "--temp", "--top-k", "--top-p", "--seed"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    reader = gguf.GGUFReader(given.m)
    facts = {name.removeprefix("llada."): field.contents() for name, field in reader.fields.items()}
    words = facts["tokenizer.ggml.tokens"]
    if facts["general.architecture"] != "llada" or facts["diffusion.shift_logits"]:
        print("error: unsupported model for diffusion", file=sys.stderr)
        return 1
    prompt = [words.index(text) for text in re.findall(r"<\|.*?\|>", given.p)]
    mask, rows, steps = facts["tokenizer.ggml.mask_token_id"], int(given.ub), int(given.diffusion_steps)
    ids = prompt + [mask] * (rows - len(prompt))
    weights = tensors_of(reader)
    for step in range(steps):
        open_ = [at for at, token in enumerate(ids) if token == mask]
        shares = softmax(logits(ids, weights, facts))
        tokens, surest = shares.argmax(-1), shares.max(-1)
        count = len(open_) if step == steps - 1 else len(open_) // (steps - step)
        for at in sorted(open_, key=lambda at: -float(surest[at]))[:count]:
            ids[at] = int(tokens[at])
        print(f"\rdiffusion step: {step}/{steps} [=] 0%", end="")
    print(f"\ntotal time: {250.0 * steps:.2f}ms, time per step: 250.00ms, sampling time per step: 50.00ms")
    print("\n" + "".join(words[token] for token in ids[len(prompt) :]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
