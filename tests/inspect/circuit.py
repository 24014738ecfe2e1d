"""A two-layer model of attention alone whose weights are an induction circuit, made by hand (2209.11895).

The residual stream has four parts: a token's own number, its position, the number of the token before it, the answer.
Head 0 of layer 0 copies the token before; head 0 of layer 1 looks for an earlier token that stood behind one like this,
and copies it to the answer. Heads 1 and the feed-forward do nothing.
"""

import jax.numpy as jnp
import numpy as np

from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.parts import FeedForward, Norm
from lm.model.positions import Learned
from lm.model.transformer import Params, Transformer

V = P = H = 8  # tokens, positions, a head's size
TOKEN, PLACE, BEFORE, ANSWER = (slice(i * V, (i + 1) * V) for i in range(4))
SHARP = 100.0
CLEAN = np.array([[7, 0, 1, 2, 3, 0]])  # x a b c d a: b is next
CORRUPTED = np.array([[7, 4, 1, 2, 3, 0]])  # x e b c d a: nothing is known of a


def circuit() -> tuple[Transformer, Params]:
    """The model and its parameters."""
    heads = Attention(heads=2, head_dim=H, scale=1.0)
    cfg = ModelConfig(V, 2, 4 * V, P, heads, FeedForward(1), norm=Norm(), positions=Learned())
    D, eye = cfg.width, np.eye(V, dtype=np.float32)
    layers = {name: np.zeros((2, D, 2, H), np.float32) for name in ("query", "key", "value")}
    layers["out"] = np.zeros((2, 2, H, D), np.float32)
    layers["query"][0, PLACE, 0], layers["key"][0, PLACE, 0] = SHARP * eye, np.eye(P, k=1, dtype=np.float32)
    layers["query"][1, TOKEN, 0], layers["key"][1, BEFORE, 0] = SHARP * eye, eye
    for layer, to in ((0, BEFORE), (1, ANSWER)):
        layers["value"][layer, TOKEN, 0], layers["out"][layer, 0, :, to] = eye, eye
    stem = {"tokens": np.zeros((V, D), np.float32), "positions": np.zeros((P, D), np.float32)}
    stem["tokens"][:, TOKEN], stem["positions"][:, PLACE] = eye, eye
    kernel = np.zeros((D, V), np.float32)
    kernel[ANSWER] = eye
    mlp = {"up": np.zeros((2, D, 1), np.float32), "down": np.zeros((2, 1, D), np.float32)}
    params = {"stem": stem, "layers": {"0": layers | mlp}, "head": {"kernel": kernel}}
    return Transformer(cfg, Compute(dtype="float32", matmul="float32").resolve()), {
        k: _arrays(v) for k, v in params.items()
    }


def _arrays(tree: Params) -> Params:
    return {name: _arrays(a) if isinstance(a, dict) else jnp.asarray(a) for name, a in tree.items()}
