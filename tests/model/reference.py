"""GPT-2 and Llama in numpy, float64, a head and a query at a time, written from their papers; and the models tested.

Slow and plain on purpose: nothing here is shared with the library but the names of the parameters.
"""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.experts import Experts
from lm.model.families import deepseek_v2, gemma2, gemma3, gpt, gpt_oss, llama, mixtral, palm
from lm.model.inputs import Inputs
from lm.model.parts import FeedForward
from lm.model.positions import Alibi, Relative, Sinusoidal
from lm.model.scaling import Llama3, YaRN
from lm.model.transformer import Transformer

SIMPLE = Compute(dtype="float32", matmul="float32", attention="plain", flat="no", unroll=1, loss_chunk=0, backend="cpu")

GPT = gpt(vocab=37, layers=3, width=12, heads=3, context=24)
LLAMA = llama(vocab=41, layers=3, width=16, heads=4, kv_heads=2, mlp=20, context=24, theta=100.0)
SINUSOIDAL = gpt(
    vocab=31, layers=2, width=12, heads=1, context=24, bias=False, positions=Sinusoidal(max_wavelength=50.0)
)
SIZES = dict(vocab=29, width=12, heads=4, kv_heads=2, head_dim=6, mlp=10, context=24)
# windows in odd and full in even layers, and one layer more than whole repetitions of the pattern
GEMMA2 = gemma2(**SIZES, layers=3, window=3, query_scale=0.3, softcap=2.0, output_softcap=3.0)
# a dense layer, then experts in windows and in full layers; four or more queries behind a cache do not absorb
LATENT = deepseek_v2(
    **SIZES | dict(kv_heads=0, head_dim=3),
    layers=3,
    kv_lora_rank=8,
    q_lora_rank=7,
    qk_nope_head_dim=2,
    qk_rope_head_dim=4,
    v_head_dim=3,
    first_layers=(LayerKind(ffn=FeedForward(14, "silu", gated=True)),),
    ffn=Experts(10, "silu", gated=True, experts=3, top_k=2),
    pattern=(LayerKind(window=3), LayerKind()),
)
# a state in odd and attention in even layers, and one layer more than whole repetitions of the pattern
DELTA = replace(
    LLAMA,
    pattern=(LayerKind(mixer=GatedDeltaNet(2, 4, key_dim=6, value_dim=3, conv_size=3, chunk=4)), LayerKind()),
)
MODELS = {
    "gpt": GPT,
    "llama": LLAMA,
    "sinusoidal": SINUSOIDAL,
    "alibi": gpt(vocab=31, layers=2, width=12, heads=3, context=24, positions=Alibi()),
    "relative": gpt(vocab=31, layers=2, width=12, heads=3, context=24, positions=Relative(buckets=8, max_distance=16)),
    "mixtral": mixtral(**SIZES, layers=2, experts=3, top_k=2, scaling=Llama3(factor=4.0, original_context=8)),
    "gpt-oss": gpt_oss(
        **SIZES, layers=2, experts=4, top_k=2, window=4, scaling=YaRN(factor=4.0, original_context=8, truncate=False)
    ),
    "gemma 2": GEMMA2,
    "gemma 3": gemma3(**SIZES, layers=3, window=3, every=3),
    "latent": LATENT,
    "gated deltanet": DELTA,
    "palm": palm(vocab=31, layers=2, width=12, heads=3, head_dim=6, context=24),
}


@cache
def lively(cfg: ModelConfig, seed: int = 0) -> Any:
    """Random parameters, none of which is 0 or 1, so that biases, scales and positions matter."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        middle, spread = (1.0, 0.1) if path[-1].key.endswith("_scale") else (0.0, 0.25)
        drawn = middle + spread * rng.standard_normal(shape.shape)
        return jnp.asarray(drawn.astype(shape.dtype), shape.dtype)  # converted by JAX, it is a program a shape

    return jax.tree_util.tree_map_with_path(draw, Transformer(cfg, SIMPLE).shapes())


def tokens(cfg: ModelConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cfg.vocab, shape).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def _logits(model: Transformer, params: Any, inputs: Inputs, key: Any) -> jax.Array:
    return model(params, inputs, key=key)


def run(model: Transformer, params: Any, ids: Any, key: Any = None, **inputs: Any) -> np.ndarray:
    """The logits, compiled; on the host, where what is cut of them or computed with them is no program."""
    return np.asarray(_logits(model, params, Inputs(ids, **inputs), key))


def close(got: Any, expected: Any, tolerance: float = 1e-5, least: float = 0.0) -> None:
    """Equal to `tolerance` of the standard deviation of what is expected, which counts as at least `least`; or, where
    there is a tolerance, to the last digit of float32: of a single number, a loss, that is more."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    worst, scale = np.abs(got - expected).max(), max(expected.std(), least)
    digit = np.spacing(np.float32(np.abs(expected).max())) if tolerance else 0.0
    assert worst <= max(tolerance * scale, digit), f"{worst} apart, at a scale of {scale}"


def trees_close(got: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Every leaf. One that is zero but for rounding (the gradient of keys' biases) is held to the scale of all."""
    scale = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(expected)]).std()
    jax.tree.map(lambda a, b: close(a, b, tolerance, 1e-2 * scale), got, expected)


# ---------------------------------------------------------------- the papers


def layer_norm(x: np.ndarray, p: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    """1607.06450, equation 4."""
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return y * p[f"{name}_scale"] + p.get(f"{name}_bias", 0.0)


def rms_norm(x: np.ndarray, p: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    """1910.07467, equation 4."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p[f"{name}_scale"]


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """1606.08415, section 2."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def turned(x: np.ndarray, theta: float) -> np.ndarray:
    """2104.09864: the head [T, H] as complex numbers (Llama pairs i with i + H/2), each turned by m theta^(-2i/H)."""
    T, H = x.shape
    pairs = x[:, : H // 2] + 1j * x[:, H // 2 :]
    angles = np.arange(T)[:, None] * theta ** (-2 * np.arange(H // 2) / H)
    pairs = pairs * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """1706.03762, equation 1, for one head [T, H]; query t sees the keys up to t."""
    out = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / math.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out[t] = weights / weights.sum() @ v[: t + 1]
    return out


def attention(x: np.ndarray, p: dict[str, np.ndarray], theta: float = 0.0) -> np.ndarray:
    """All heads of one sequence [T, D]; query head n uses kv head n // (N / K) (2305.13245)."""
    heads, kv_heads = p["query"].shape[1], p["key"].shape[1]
    y = np.zeros_like(x) + p.get("out_bias", 0.0)

    def project(name: str, head: int) -> np.ndarray:
        out = x @ p[name][:, head]
        return out + p[f"{name}_bias"][head] if f"{name}_bias" in p else out

    for n in range(heads):
        kv = n // (heads // kv_heads)
        q, k, v = project("query", n), project("key", kv), project("value", kv)
        if theta:
            q, k = turned(q, theta), turned(k, theta)
        y = y + attend(q, k, v) @ p["out"][n]
    return y


def forward(cfg: ModelConfig, params: Any, ids: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence [T], of GPT or LLAMA."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    stem, head = params["stem"], params["head"]
    x = stem["tokens"][ids]
    if cfg is GPT:
        x = x + stem["positions"][: len(ids)]
    for i in range(cfg.layers):
        p = {name: stack[i] for name, stack in params["layers"]["0"].items()}
        x = gpt_layer(x, p) if cfg is GPT else llama_layer(x, p)
    x = layer_norm(x, head, "norm", 1e-5) if cfg is GPT else rms_norm(x, head, "norm", 1e-5)
    return x @ (stem["tokens"].T if cfg is GPT else head["kernel"])


def gpt_layer(x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    x = x + attention(layer_norm(x, p, "attention_norm", 1e-5), p)
    hidden = gelu_tanh(layer_norm(x, p, "ffn_norm", 1e-5) @ p["up"] + p["up_bias"])
    return x + hidden @ p["down"] + p["down_bias"]


def llama_layer(x: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    x = x + attention(rms_norm(x, p, "attention_norm", 1e-5), p, theta=100.0)
    h = rms_norm(x, p, "ffn_norm", 1e-5)
    return x + (silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def mean_loss(model: Transformer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """A scalar of the logits, for gradients."""
    logits = model(params, Inputs(batch["tokens"], batch["positions"], batch["segments"]))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1).mean()


@partial(jax.jit, static_argnums=0)
def _extend(model: Transformer, params: Any, cache: Any, inputs: Inputs) -> Any:
    x, cache, *_ = model.hidden(params, inputs, cache)
    return model.logits(params, x), cache


def extend(model: Transformer, params: Any, cache: Any, inputs: Inputs) -> tuple[np.ndarray, Any]:
    """(the logits of tokens behind a cache, on the host; the cache with them)."""
    logits, cache = _extend(model, params, cache, inputs)
    return np.asarray(logits), cache
