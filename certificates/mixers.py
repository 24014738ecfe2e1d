"""Mixers by themselves: modules of transformers in odd shapes, their tensors and inputs, and our names for the tensors.

For layers of architectures that are not read as a whole. Neither PyTorch nor JAX is imported here.
"""

from typing import Any, NamedTuple

import numpy as np

from certificates.cases import array

T = 150  # tokens of a row: three chunks of 64, the last one not full


class MixerCase(NamedTuple):
    """One module of transformers: `shape` in words, its class, the class of its config and fields of that."""

    shape: str
    module: str
    config: str
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        """A folder's name."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.module} {self.shape}")


def delta(shape: str, **fields: Any) -> MixerCase:
    """A gated DeltaNet; fields without their linear_."""
    linear = {f"linear_{name}": size for name, size in fields.items() if name not in ("hidden_size", "rms_norm_eps")}
    others = {name: value for name, value in fields.items() if f"linear_{name}" not in linear}
    return MixerCase(shape, "Qwen3NextGatedDeltaNet", "Qwen3NextConfig", others | linear)


MIXERS = (
    delta(
        "three value heads a key head",
        hidden_size=20,
        num_key_heads=2,
        num_value_heads=6,
        key_head_dim=12,
        value_head_dim=7,
        conv_kernel_dim=4,
    ),
    delta(
        "as many of both, short convolution",
        hidden_size=9,
        num_key_heads=3,
        num_value_heads=3,
        key_head_dim=5,
        value_head_dim=16,
        conv_kernel_dim=2,
        rms_norm_eps=1e-3,
    ),
)


def hidden_states(case: MixerCase) -> np.ndarray:
    """What the module reads, [3, T, D]."""
    return np.random.default_rng(9).standard_normal((3, T, case.fields["hidden_size"])).astype(np.float32)


def attention_mask() -> np.ndarray:
    """[3, T]: a row padded on the left, one on the right, one not at all."""
    mask = np.ones((3, T), np.int64)
    mask[0, :11], mask[1, -6:] = 0, 0
    return mask


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of the tensor `name`."""
    return array(name, shape)


def params(case: MixerCase) -> dict[str, np.ndarray]:
    """The module's tensors by our names. Of in_proj_qkvz and in_proj_ba each key head has its rows together, those of
    the value heads that it serves among them."""
    D, sizes = case.fields["hidden_size"], {n.removeprefix("linear_"): size for n, size in case.fields.items()}
    K, N, W = sizes["num_key_heads"], sizes["num_value_heads"], sizes["conv_kernel_dim"]
    H, V = sizes["key_head_dim"], sizes["value_head_dim"]
    own = N // K * V
    qkvz = tensor("in_proj_qkvz.weight", (2 * K * (H + own), D)).reshape(K, -1, D)
    query, key, value, gate = (a.transpose(2, 0, 1) for a in np.split(qkvz, [H, 2 * H, 2 * H + own], axis=1))
    beta, decay = np.split(tensor("in_proj_ba.weight", (2 * N, D)).reshape(K, -1, D), 2, axis=1)
    conv = tensor("conv1d.weight", (2 * K * H + N * V, 1, W))[:, 0].T
    q_conv, k_conv, v_conv = np.split(conv, [K * H, 2 * K * H], axis=1)
    return {
        "query": query,
        "key": key,
        "value": value.reshape(D, N, V),
        "out_gate": gate.reshape(D, N, V),
        "beta": beta.reshape(N, D).T,
        "decay": decay.reshape(N, D).T,
        "query_conv": q_conv.reshape(W, K, H),
        "key_conv": k_conv.reshape(W, K, H),
        "value_conv": v_conv.reshape(W, N, V),
        "A_log": tensor("A_log", (N,)),
        "dt_bias": tensor("dt_bias", (N,)),
        "value_norm_scale": tensor("norm.weight", (V,)),
        "out": tensor("out_proj.weight", (D, N * V)).T.reshape(N, V, D),
    }
