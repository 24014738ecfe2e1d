"""PaLM (2204.02311, section 2) in numpy, float64, written from its paper: no weights of it were published."""

from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.generate import generate
from lm.decode.sampling import Sampling
from lm.model.config import ModelConfig
from lm.model.families import palm
from lm.model.transformer import Transformer
from tests.model.reference import SIMPLE, close, lively, run, tokens

CONFIGS = {
    "one head": palm(vocab=29, layers=1, width=10, heads=1, head_dim=4, context=16),
    "many heads, wider than the model": palm(vocab=31, layers=3, width=12, heads=4, head_dim=6, context=24),
}


def normalised(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """LayerNorm without a bias ("No Biases")."""
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """RoPE, pair by pair: a rotation by position * 10000^(-2i/H)."""
    half, out = len(x) // 2, np.empty_like(x)
    for i in range(half):
        angle = position * 10000.0 ** (-i / half)
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i] * np.sin(angle) + x[i + half] * np.cos(angle)
    return out


def attended(ys: list[np.ndarray], p: dict[str, np.ndarray]) -> np.ndarray:
    """Multi-query attention of the last token: heads of queries, one of keys and values."""
    t, total = len(ys) - 1, np.zeros(p["out"].shape[-1])
    keys = [turned(y @ p["key"][:, 0], s) for s, y in enumerate(ys)]
    values = [y @ p["value"][:, 0] for y in ys]
    for n in range(p["query"].shape[1]):
        query = turned(ys[t] @ p["query"][:, n], t)
        scores = np.exp([query @ key / np.sqrt(len(query)) for key in keys])
        mixed = sum(s * value for s, value in zip(scores / scores.sum(), values, strict=True))
        total += mixed @ p["out"][n]
    return total


def fed(y: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """SwiGLU: Swish(y W) * (y V), then the last product."""
    gate = y @ p["gate"]
    return (gate / (1 + np.exp(-gate)) * (y @ p["up"])) @ p["down"]


def forward(cfg: ModelConfig, params: Any, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence [T]: y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)), tied embeddings."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    table = params["stem"]["tokens"]
    xs = [table[id] for id in ids]
    for i in range(cfg.layers):
        p = {name: stack[i] for name, stack in params["layers"]["0"].items()}
        ys = [normalised(x, p["norm_scale"]) for x in xs]
        xs = [x + fed(ys[t], p) + attended(ys[: t + 1], p) for t, x in enumerate(xs)]
    last = [normalised(x, params["head"]["norm_scale"]) for x in xs]
    return np.stack(last) @ table.T / np.sqrt(cfg.width)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_paper_s(name: str) -> None:
    cfg = CONFIGS[name]
    params, ids = lively(cfg), tokens(cfg, 2, 11)
    given = run(Transformer(cfg, SIMPLE), params, ids)
    for row, logits in zip(ids, given, strict=True):
        close(logits, forward(cfg, params, row))


def test_there_is_nothing_that_the_paper_does_not_have() -> None:
    params = lively(CONFIGS["one head"])
    assert set(params["layers"]["0"]) == {"norm_scale", "query", "key", "value", "out", "gate", "up", "down"}
    assert set(params["stem"]) == {"tokens"} and set(params["head"]) == {"norm_scale"}


def test_it_writes_what_the_paper_s_would() -> None:
    cfg = CONFIGS["many heads, wider than the model"]
    params, ids = lively(cfg), tokens(cfg, 5).tolist()
    (written,) = generate(Transformer(cfg, SIMPLE), params, [ids], 6, sampling=Sampling(temperature=0.0))
    for _ in range(6):
        ids.append(int(forward(cfg, params, np.array(ids))[-1].argmax()))
    assert written == ids[5:]
