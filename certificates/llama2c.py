"""A model in llama2.c's binary layout (github.com/karpathy/llama2.c): seven whole numbers, then float32 tensors."""

import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lm.model.compute import Compute
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained
from lm.text.gguf import from_gguf
from lm.text.tokenizer import Tokenizer


def read(model: Path, vocabulary: Path) -> Pretrained:
    """The model in the file `model` with the pieces in `vocabulary`."""
    data = model.read_bytes()
    D, F, L, N, K, V, C = struct.unpack("<7i", data[:28])
    H, tied, V = D // N, V > 0, abs(V)
    rest = np.frombuffer(data[28:], np.float32)

    def take(*shape: int) -> np.ndarray:
        nonlocal rest
        found, rest = rest[: np.prod(shape)].reshape(shape), rest[np.prod(shape) :]
        return found

    def paired(w: np.ndarray, heads: int) -> np.ndarray:
        """Rotary pairs side by side to halves: [L, out, D] -> [L, D, heads, H]."""
        return w.reshape(L, heads, H // 2, 2, D).transpose(0, 4, 1, 3, 2).reshape(L, D, heads, H)

    tokens, attention_norm = take(V, D), take(L, D)
    query, key = paired(take(L, N * H, D), N), paired(take(L, K * H, D), K)
    value = take(L, K * H, D).transpose(0, 2, 1).reshape(L, D, K, H)
    out = take(L, D, N * H).transpose(0, 2, 1).reshape(L, N, H, D)
    ffn_norm = take(L, D)
    gate, down, up = take(L, F, D), take(L, D, F), take(L, F, D)
    gate, down, up = (w.transpose(0, 2, 1) for w in (gate, down, up))
    norm, _ = take(D), take(2, C, H // 2)  # the sines and cosines are computed
    kernel = {} if tied else {"kernel": take(V, D).T}
    layer = dict(query=query, key=key, value=value, out=out, gate=gate, down=down, up=up)
    layer |= dict(attention_norm_scale=attention_norm, ffn_norm_scale=ffn_norm)
    cfg = llama(vocab=V, layers=L, width=D, heads=N, kv_heads=K, mlp=F, context=C, eps=1e-5, tied=tied)
    params = {
        "stem": {"tokens": jnp.asarray(tokens)},
        "layers": {"0": {name: jnp.asarray(w) for name, w in layer.items()}},
        "head": {"norm_scale": jnp.asarray(norm)} | kernel,
    }
    tokenizer = pieces(vocabulary, V)
    compute = Compute(dtype="float32", matmul="float32", unroll=1).resolve()
    return Pretrained(cfg, params, tokenizer, Transformer(cfg, compute))


def pieces(file: Path, count: int) -> Tokenizer:
    """The SentencePiece vocabulary of `count` pieces: score, length and bytes of each."""
    data, at = file.read_bytes(), 4
    tokens, scores = [], []
    for _ in range(count):
        score, length = struct.unpack("<fi", data[at : at + 8])
        tokens.append(data[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    tokens[:3] = ["<unk>", "<s>", "</s>"]
    types = [2, 3, 3, *(6 if t.startswith("<0x") and len(t) == 6 else 1 for t in tokens[3:])]
    return from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [t.replace(" ", "▁") for t in tokens],
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )
