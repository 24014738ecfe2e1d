"""What the page of `lm inspect` shows of a model and a text, as plain data: each function takes a model, its parameters
and tokens, and gives numbers, lists and dicts of them.

lm/pretrained/inside.py puts them together for a loaded model, lm/page/inside.py draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.inspect.edits import Zero
from lm.inspect.look import look, places, whole
from lm.inspect.patching import Metric, patch
from lm.inspect.patterns import Attention, keep, most_keys
from lm.model.config import LayerKind, ModelConfig
from lm.model.inputs import Inputs
from lm.model.positions import Positions
from lm.model.taps import CROSS, ENCODER, Watch
from lm.model.transformer import Params, Transformer
from lm.model.vision import see

STREAMS = {  # the residual stream, in the order of a layer -> what it has passed on the way there
    "resid_pre": "",
    "resid_mid": "attention",
    "resid_cross": "cross-attention",
    "resid_post": "feed-forward",
}
BLOCK = 32  # positions whose logits are in memory at a time
DIGITS = 4  # of a share


def rounded(x: Any) -> Any:
    """An array as nested lists, with few digits."""
    return np.round(np.asarray(x, np.float64), DIGITS).tolist()


# ---------------------------------------------------------------- one look


def observe(model: Transformer, params: Params, inputs: Inputs, sinks: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The residual streams of one row of inputs and the largest of each pattern, by the names of their places; "last",
    what the output reads, [1, T, D]. `sinks` are, of each text (ENCODER or ""), the keys that are told apart."""
    cfg, encoder = model.cfg, inputs.encoder
    heads = _most_heads(cfg)
    length = {"": inputs.tokens.shape[1], ENCODER: 0 if encoder is None else encoder.tokens.shape[1]}
    reads: dict[str, Any] = {}
    for name in places(model, encoder is not None):
        of, to = ENCODER * name.startswith(ENCODER), ENCODER * name.startswith((ENCODER, CROSS))
        if name.removeprefix(of) in STREAMS:
            reads[name] = whole
        elif name.endswith("attn_pattern"):
            layers = cfg.encoder_config.layers if of else cfg.layers
            reads[name] = partial(keep, k=most_keys(layers, heads, length[of], length[to]), sinks=sinks[to])
    watching = replace(model, watch=Watch(reads))

    @jax.jit
    def run(params: Params, inputs: Inputs) -> dict[str, Any]:
        hidden = watching.hidden(params, inputs)
        return {**hidden.taps, "last": hidden.x}

    return jax.device_get(run(params, inputs))


def _most_heads(cfg: ModelConfig) -> int:
    return max(slot.mixer.sizes().get("heads", ("", 1))[1] for slot in cfg.slots.values())


def attentions(cfg: ModelConfig, seen: Mapping[str, Any], sinks: Mapping[str, Sequence[int]]) -> list[Attention]:
    """The patterns that were seen, in the order of computation."""
    both = cfg.has_encoder
    titles = {
        ENCODER + "attn_pattern": ("encoder", ENCODER, ENCODER, cfg.encoder_config if both else cfg),
        "attn_pattern": ("decoder" if both else "attention", "", "", cfg),
        CROSS + "attn_pattern": ("cross-attention", "", ENCODER, cfg),
    }
    found = []
    for place, (title, queries, keys, own) in titles.items():
        if place in seen:
            layers = [i for i, slot in enumerate(own.by_layer) if not slot.mixer.recurrent]
            kept = jax.tree.map(lambda a: a[:, 0], seen[place])
            found.append(Attention(title, name_of(cfg, queries), name_of(cfg, keys), layers, sinks[keys], kept))
    return found


def towers(model: Transformer, params: Params, images: Any) -> list[tuple[Attention, list[dict[str, Any]]]]:
    """Of each image [M, size, size, C] the attention of its patches to one another in the vision tower, and how far
    each sublayer moved them (`moved`)."""
    vision, compute = model.cfg.vision, model.compute
    assert vision is not None
    tower, S = vision.tower, vision.patches
    k = most_keys(tower.layers, _most_heads(tower), S * len(images), S)
    here = places(Transformer(tower, compute))
    reads: dict[str, Any] = {name: whole for name in here if name in STREAMS}
    reads["attn_pattern"] = partial(keep, k=k, sinks=())
    run = jax.jit(lambda p, x: see(vision, model.cfg.width, compute, p, x, watch=Watch(reads))[1])
    taps = jax.device_get(run(params["vision"], jnp.asarray(images)[None]))

    def one(i: int, name: str) -> tuple[Attention, list[dict[str, Any]]]:
        own = jax.tree.map(lambda a: a[:, i : i + 1], taps)
        kept = jax.tree.map(lambda a: a[:, 0], own["attn_pattern"])
        return Attention(f"tower, {name}", name, name, range(tower.layers), (), kept), moved(own)

    return [one(i, image_name(i)) for i in range(len(images))]


def image_name(i: int) -> str:
    """What the page calls the patches of an image."""
    return f"image {i + 1}"


def name_of(cfg: ModelConfig, side: str) -> str:
    """What the page calls the text of a side (ENCODER or ""): an encoder-decoder reads a text and writes an output."""
    return "output" if cfg.has_encoder and not side else "text"


def moved(seen: Mapping[str, Any], side: str = "") -> list[dict[str, Any]]:
    """How far each sublayer moved the residual stream, as a share of its norm before: `share` [L][T] of each."""
    streams = [(what, seen[side + name][:, 0]) for name, what in STREAMS.items() if side + name in seen]
    norm = partial(np.linalg.norm, axis=-1)
    pairs = zip(streams, streams[1:], strict=False)
    return [dict(what=what, share=rounded(norm(b - a) / np.maximum(norm(a), 1e-30))) for (_, a), (what, b) in pairs]


# ---------------------------------------------------------------- the output


def read_out(model: Transformer, params: Params, x: Any, k: int, wanted: Any = None) -> tuple[Any, Any, Any]:
    """What the model's norm and output read in states x [P, D]: the ids [P, k] of the likeliest tokens, their
    probabilities [P, k], and those of `wanted` [P]. Few logits are in memory at a time."""
    P, D = x.shape
    padded = -(-P // BLOCK) * BLOCK
    wanted = np.zeros(P, np.int32) if wanted is None else np.asarray(wanted, np.int32)
    x = np.pad(x, [(0, padded - P), (0, 0)]).reshape(-1, BLOCK, D)
    blocks = _read_out(model, k, params, x, np.pad(wanted, (0, padded - P)).reshape(-1, BLOCK))
    return jax.tree.map(lambda a: np.asarray(a).reshape(padded, *a.shape[2:])[:P], tuple(blocks))


@partial(jax.jit, static_argnums=(0, 1))
def _read_out(model: Transformer, k: int, params: Params, x: jax.Array, wanted: jax.Array) -> Any:
    """`read_out` of blocks of states x [N, BLOCK, D]."""

    def block(own: tuple[jax.Array, jax.Array]) -> Any:
        probabilities = jax.nn.softmax(model.logits(params, own[0][None])[0])
        best, ids = jax.lax.top_k(probabilities, k)
        return ids, best, jnp.take_along_axis(probabilities, own[1][:, None], 1)[:, 0]

    return jax.lax.map(block, (x, wanted))


def pairs(ids: Any, probabilities: Any) -> list[list[list[Any]]]:
    """Rows of [id, probability]."""
    rows = zip(np.asarray(ids).tolist(), rounded(probabilities), strict=True)
    return [[list(pair) for pair in zip(*row, strict=True)] for row in rows]


def neighbours(table: jax.Array, ids: Sequence[int], k: int) -> dict[int, list[list[Any]]]:
    """The k other tokens of the embedding `table` [V, D] nearest to each of `ids`, by cosine: id -> [id, cosine]."""
    unique = sorted(set(ids))
    cosines, found = _neighbours(k, table, np.array(unique, np.int32))
    return dict(zip(unique, pairs(found, cosines), strict=True))


@partial(jax.jit, static_argnums=0)
def _neighbours(k: int, table: jax.Array, ids: jax.Array) -> Any:
    """The k largest cosines to each of `ids` [N], [N, k], and whose they are."""
    unit = table.astype(jnp.float32)
    unit /= jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), 1e-30)

    def one(id: jax.Array) -> Any:
        cosines = (unit @ unit[id]).at[id].set(-2)
        return jax.lax.top_k(cosines, k)

    return jax.lax.map(one, ids, batch_size=BLOCK)


# ---------------------------------------------------------------- the order of words


def orderless(cfg: ModelConfig, masked: bool) -> ModelConfig:
    """`cfg` without positions; with `masked` False also without the mask that hides later tokens, and windows. It has
    the parameters of `cfg`, of which it reads no positions."""

    def kind(one: LayerKind) -> LayerKind:
        positions = None if one.positions is None else Positions()
        return replace(one, positions=positions, window=one.window if masked else 0)

    encoder = cfg.encoder and orderless(cfg.encoder, masked)
    return replace(
        cfg,
        positions=Positions(),
        pattern=tuple(map(kind, cfg.pattern)),
        first_layers=tuple(map(kind, cfg.first_layers)),
        encoder=encoder,
        causal=cfg.causal and (masked or cfg.has_encoder),
    )


def order_variants(cfg: ModelConfig) -> dict[str, ModelConfig]:
    """The model, and what is left of it without positions, by what they are called."""
    variants = {"the model": cfg, "without positions": orderless(cfg, masked=True)}
    recurrent = any(slot.mixer.recurrent for slot in cfg.slots.values())
    if cfg.causal and not cfg.has_encoder:
        left = "the mask and the states" if recurrent else "the mask alone"
        variants[f"without positions: {left}"] = variants.pop("without positions")
        if not recurrent and not cfg.vision:  # which wants a mask
            variants["without positions and mask"] = orderless(cfg, masked=False)
    return variants


@partial(jax.jit, static_argnums=(0, 3))
def _taps(model: Transformer, params: Params, inputs: Inputs, places: tuple[str, ...]) -> Mapping[str, jax.Array]:
    """What a look has at the places."""
    return look(model, params, inputs, places).taps


def order(model: Transformer, params: Params, inputs: Inputs, moved_to: Sequence[int]) -> list[dict[str, Any]]:
    """How far the residual streams of the same tokens in another order are apart, of the model and without positions:
    `apart` [L + 1][T] behind the embedding and each layer, |a - b| over the mean of |a| and |b|, in the order of the
    text. `moved_to` are the tokens' numbers in the other order, as they stand there."""
    side = ENCODER if inputs.encoder else ""
    read: Any = jax.device_get(inputs.encoder or inputs)
    tokens: Any = np.concatenate([read.tokens, read.tokens[:, np.asarray(moved_to)]])
    twice: Any = [None if a is None else np.repeat(a, 2, 0) for a in (read.blocks, read.images)]
    both = Inputs(tokens, blocks=twice[0], images=twice[1])
    if inputs.encoder:
        first: Any = np.repeat(jax.device_get(inputs.tokens)[:, :1], 2, 0)
        both = Inputs(first, encoder=Inputs(tokens, segments=jnp.ones_like(tokens)))
    back = np.argsort(moved_to)
    found = []
    for label, cfg in order_variants(model.cfg).items():
        taps = jax.device_get(_taps(replace(model, cfg=cfg), params, both, (side + "embedding", side + "resid_post")))
        streams = np.concatenate([taps[side + "embedding"], taps[side + "resid_post"]]).astype(np.float32)
        a, b = streams[:, 0], streams[:, 1][:, back]
        norm = partial(np.linalg.norm, axis=-1)
        found.append(dict(label=label, apart=rounded(2 * norm(a - b) / np.maximum(norm(a) + norm(b), 1e-30))))
    return found


def words(pieces: Sequence[str], controls: Sequence[int]) -> list[list[int]]:
    """The tokens of each word, with the whitespace before it, or sign; those at `controls` are of none."""
    found: list[list[int]] = []
    for i, piece in enumerate(pieces):
        if i in controls:
            continue
        before = pieces[i - 1] if found and found[-1][-1] == i - 1 else ""
        part_of_word = piece[:1].isalnum() and before[-1:].isalnum() or piece.startswith("<0x")
        if before and (part_of_word or before.isspace()):
            found[-1].append(i)
        else:
            found.append([i])
    return found


def other_order(pieces: Sequence[str], controls: Sequence[int], wanted: str = "") -> list[int]:
    """The numbers of the tokens in another order of the words: that of `wanted`, which has the same words, or a random
    one. Control tokens stay where they are.

    Raises ValueError where `wanted` has other words."""
    groups = words(pieces, controls)
    if wanted:
        groups = _as_in(["".join("".join(pieces[i] for i in g).split()).casefold() for g in groups], groups, wanted)
    else:
        groups = [groups[i] for i in np.random.default_rng(0).permutation(len(groups))]
        if len(groups) > 1 and groups == sorted(groups):
            groups = groups[1:] + groups[:1]
    rest = iter([i for group in groups for i in group])
    return [i if i in controls else next(rest) for i in range(len(pieces))]


def _as_in(names: list[str], groups: list[list[int]], wanted: str) -> list[list[int]]:
    """`groups`, each a word of `names`, in the order of the words of `wanted`."""
    left, rest, found = list(range(len(names))), "".join(wanted.split()).casefold(), []
    while rest:
        fits = [i for i in left if names[i] and rest.startswith(names[i])]
        if not fits:
            raise ValueError(
                f"the other order has {rest[:20]!r}, where a word of the text is due: expected the same words, "
                f"{' '.join(names)}"
            )
        best = max(fits, key=lambda i: (len(names[i]), -i))
        left.remove(best)
        found.append(groups[best])
        rest = rest[len(names[best]) :]
    missing = [names[i] for i in left if names[i]]
    if missing:
        raise ValueError(f"the other order lacks {' '.join(missing)}: expected the same words, in another order")
    return found + [groups[i] for i in left]


# ---------------------------------------------------------------- what if


def without_heads(
    model: Transformer, params: Params, inputs: Inputs, heads: Sequence[tuple[str, int, int]], position: int
) -> np.ndarray:
    """The probabilities [n, V] of the tokens at a position, where each of `heads` (place, layer, head) adds nothing."""

    @partial(jax.jit, static_argnums=1)
    def run(params: Params, place: str, layer: jax.Array, head: jax.Array) -> jax.Array:
        edit = Zero(place, layers=layer, heads=head)
        return jax.nn.softmax(look(model, params, inputs, edits=[edit]).logits[0, position])

    return np.stack([np.asarray(run(params, place, jnp.array(layer), jnp.array(head))) for place, layer, head in heads])


def patched(
    model: Transformer, params: Params, tokens: jax.Array, other: jax.Array, position: int, pair: tuple[int, int]
) -> dict[str, Any]:
    """Activation patching of `tokens` [1, T] with values of the `other` text's, by layer and head, and by layer and
    token: how far the logit of pair[0] less that of pair[1] goes from the text's (0) to the other's (1)."""

    def metric(logits: jax.Array) -> jax.Array:
        at = logits[0, position]
        return at[pair[0]] - at[pair[1]]

    def share(effect: jax.Array, here: jax.Array, there: jax.Array) -> Any:
        return rounded((effect - here) / jnp.where(jnp.abs(there - here) < 1e-6, jnp.inf, there - here))

    here, there = (_metric(model, params, x, metric) for x in (tokens, other))
    run = jax.jit(lambda p, x, y, place, by: patch(model, p, x, y, place, metric, by), static_argnums=(3, 4))
    heads, streams = (run(params, tokens, other, *how) for how in (("attn_head", "N"), ("resid_post", "T")))
    return dict(heads=share(heads, here, there), tokens=share(streams, here, there))


def _metric(model: Transformer, params: Params, tokens: jax.Array, metric: Metric) -> jax.Array:
    return jax.jit(lambda p, x: metric(model(p, x)))(params, tokens)


def divergence(before: np.ndarray, after: np.ndarray) -> float:
    """KL(before | after) of two distributions, in nats."""
    p, q = np.asarray(before, np.float64), np.maximum(np.asarray(after, np.float64), 1e-30)
    return round(float(np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / q), 0).sum()), DIGITS)
