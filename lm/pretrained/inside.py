"""Looking inside a loaded model at a text: what `lm inspect` shows, as plain data.

data, attentions = inside(model, "The cat sat on the mat because it was tired")
html("SmolLM2", data, attentions)  # the page
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.images import ImageLike
from lm.decode.images import check_marks, vision_of
from lm.inspect import page
from lm.inspect.patterns import Attention, pack_all
from lm.model.inputs import Inputs
from lm.model.output import NoOutput
from lm.model.taps import CROSS, ENCODER
from lm.page.inside import inside_page
from lm.pretrained.fill import MASK, encode
from lm.pretrained.images import look_at
from lm.pretrained.model import Pretrained
from lm.tune.vision import image_tokens

MOST = 2048  # tokens of a text
TOWER_PATCHES = 1024  # of an image whose tower is shown
LENS = 128  # places at most whose output is read layer by layer
PATCHED = 64  # tokens at most of a text that is patched
WRITTEN = 32  # tokens at most of an output that is not given
BEST, OF_LAYER, NEAR = 10, 3, 8  # candidates of a place, of a layer, neighbours of a token
PATTERN_BYTES = 1_900_000  # of a page's patterns, deflated: a third more in base64
SOFT, SHOWN = "▦", 448  # a soft token's text; pixels of an image on the page
SIDES = {"": "attn_head", "cross.": CROSS + "attn_head", "encoder.": ENCODER + "attn_head"}


@dataclass(frozen=True)
class WhatIf:
    """What is changed: heads that add nothing, `zero`, as "3.5" (layer 3, head 5; of an encoder-decoder "encoder.3.5"
    and "cross.3.5" too), and the `other` text whose values are patched in."""

    zero: Sequence[str] = ()
    other: str = ""


def inside(
    model: Pretrained,
    text: str,
    other_order: str = "",
    output: str = "",
    what_if: WhatIf = WhatIf(),
    images: Sequence[ImageLike] = (),
) -> tuple[dict[str, Any], list[Attention]]:
    """What the page shows of a model and a text: plain data, and attention's patterns.

    Args:
      model: the model.
      text: which an encoder-decoder reads. Names of control ids, masks and sentinels are those ids.
      other_order: the words of the text in another order; "": a random one.
      output: what an encoder-decoder's decoder reads; "": what it writes, the likeliest token each time.
      what_if: what is changed.
      images: of a model with a vision tower, which stand in the text where it has marks <image>, or come first.

    Raises:
      ValueError: where there is no tokenizer, for a text without tokens or longer than the context, for other words in
        another order, a head that is not there, and a text to patch from that has not as many tokens."""
    look = Look(model, text, output, images)
    moved_to = page.other_order(look.pieces, look.controls, other_order)
    changes = look.what_if(what_if)  # what is asked wrongly is said before anything is computed for long
    seen, params = look.seen, model.params
    cfg, side = model.config, ENCODER if model.config.has_encoder else ""
    patterns, towers = page.attentions(cfg, seen, look.sinks), look.towers()
    data = dict(
        model=dict(layers=cfg.layers, width=cfg.width, vocab=cfg.vocab, causal=cfg.causal, encoder=cfg.has_encoder),
        texts={page.name_of(cfg, at): ids for at, ids in look.ids.items()} | look.patches(),
        images=look.pictures(),
        main=page.name_of(cfg, side),
        neighbours=look.neighbours(),
        order=dict(
            moved_to=moved_to, own=not other_order, lines=page.order(look.model.model, params, look.inputs, moved_to)
        ),
        moved={page.name_of(cfg, at): page.moved(seen, at) for at in look.ids}
        | {own.queries: moved for own, moved in towers},
        output=look.output(),
        what_if=changes,
    )
    return {**data, "pieces": look.pieces_of(data)}, [*(own for own, _ in towers), *patterns]


def html(name: str, data: dict[str, Any], attentions: Sequence[Attention]) -> str:
    """The page of `lm inspect`, of a model called `name`."""
    packed, k = pack_all(attentions, PATTERN_BYTES)
    whole = all(k >= one.k for one in attentions)
    shown = {**data, "attention": [one.described() for one in attentions], "kept_keys": 0 if whole else k}
    model, tokens = data["model"], len(data["texts"][data["main"]])
    heads = [f"{one.kept.keys.shape[1]} heads" for one in attentions[-1:]]
    facts = [
        ("tokens", f"{tokens:,}", "of the text"),
        ("layers", str(model["layers"]), ", ".join(heads)),
        ("width", f"{model['width']:,}", "of the residual stream"),
        ("vocabulary", f"{model['vocab']:,}", "tokens"),
    ]
    lead = "What this model has inside for one text: from its tokens to what it says next, and where each head looked."
    return inside_page(name, lead, facts, shown, b"".join(packed))


def plain(data: dict[str, Any], attentions: Sequence[Attention]) -> dict[str, Any]:
    """The same as plain data alone: `attention` with each `pattern` as [layer][head][query] lists of [key,
    probability], the largest first."""
    return {**data, "attention": [{**one.described(), "pattern": one.plain()} for one in attentions]}


class Look:
    """One text, as the model reads it. Raises ValueError as `inside`."""

    def __init__(self, model: Pretrained, text: str, output: str = "", images: Sequence[ImageLike] = ()):
        if not text:
            raise ValueError("--text is empty: expected what the model is to read")
        scanned = replace(model.model.compute, unroll=1)  # each program runs once: unrolled, it compiles for longer
        self.model, self.config = replace(model, model=replace(model.model, compute=scanned)), model.config
        self.images = look_at(images, model.config) if images else None
        read = self._checked("--text", encode(model, text) if self.images is None else self._with_images(text))
        self.ids = {"": read}
        self.inputs = Inputs(jnp.array([read]))
        if self.images is not None:
            check_marks([read], self.images[None], model.config, "--text")
            blocks = jnp.ones((1, len(read)), jnp.int32) if vision_of(model.config).prefix else None
            self.inputs = replace(self.inputs, images=jnp.asarray(self.images[None]), blocks=blocks)
        if output and not self.config.has_encoder:
            raise ValueError("--output is what an encoder-decoder writes: this model reads --text alone, leave it out")
        if self.config.has_encoder:
            self.ids = {
                ENCODER: read,
                "": self._checked("--output", [model.decoder_start, *self._written(read, output)]),
            }
            encoder = Inputs(jnp.array([read]), segments=jnp.ones((1, len(read)), jnp.int32))
            self.inputs = Inputs(jnp.array([self.ids[""]]), encoder=encoder)

    def _checked(self, option: str, ids: list[int]) -> list[int]:
        most = min(MOST, self.config.context)
        whose = "the model's context" if most == self.config.context else "the most that a page holds"
        if not 0 < len(ids) <= most:
            raise ValueError(f"{option} has {len(ids):,} tokens: expected 1 to {most:,}, {whose}")
        return ids

    def _with_images(self, text: str) -> list[int]:
        """The ids of a prompt with images; names of control ids in one with the model's own marks are those ids, as in
        a rendered chat."""
        tokens, tokenizer = image_tokens(vision_of(self.config)), self.model.checked_tokenizer()
        rendered = tokens.mark(tokenizer) in text and not tokens.prefix
        encode = tokens.encode_rendered if rendered else tokens.encode
        assert self.images is not None
        return encode(text, len(self.images), tokenizer)

    def _written(self, read: list[int], output: str) -> list[int]:
        if output:
            ids, tokenizer = encode(self.model, output), self.model.tokenizer
            assert tokenizer is not None
            ids = ids[ids[:1] == [tokenizer.bos] :]  # what a prompt has around it
            return ids[:-1] if ids[-1:] == [tokenizer.eos] else ids
        most = min(WRITTEN, self.config.context - 1)
        return [id for (new,) in self.model.stream_ids([read], most) for id in new]

    @property
    def pieces(self) -> list[str]:
        """Those of the text."""
        return [self.piece(id) for id in self.read]

    @property
    def read(self) -> list[int]:
        """The ids of the text."""
        return next(iter(self.ids.values()))

    @property
    def controls(self) -> list[int]:
        """Where control tokens are."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        around = () if self.images is None else image_tokens(vision_of(self.config)).around
        known = {*tokenizer.controls, *self.model.markers.values(), self.soft, *around}
        return [i for i, id in enumerate(self.read) if id in known]

    @property
    def soft(self) -> int | None:
        """The id in whose places an image's soft tokens stand."""
        return None if self.images is None else vision_of(self.config).image_token

    def piece(self, id: int) -> str:
        """A token's text."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        if id < 0:  # of a patch
            row, column = divmod(-1 - id, vision_of(self.config).grid)
            return f"{row},{column}"
        if id == self.soft:
            return SOFT
        named = {own: name for name, own in self.model.markers.items()}
        if id in named:
            return named[id]
        return tokenizer.piece(id) if id < tokenizer.vocab_size else f"<{id}>"

    def pieces_of(self, data: dict[str, Any]) -> dict[int, str]:
        """The texts of all ids that stand in `data`."""
        found = {id for ids in data["texts"].values() for id in ids}
        found |= {id for own, near in data["neighbours"].items() for id in (own, *(other for other, _ in near))}
        found |= set(_ids(data["output"])) | set(_ids(data["what_if"]))
        return {id: self.piece(id) for id in sorted(found)}

    @cached_property
    def sinks(self) -> dict[str, list[int]]:
        """The keys told apart of each text: the first, and in both directions a control token at the end."""
        found = {at: [0] for at in self.ids}
        last = len(self.read) - 1
        both_ways = self.config.has_encoder or not self.config.causal
        if both_ways and last and last in self.controls and self.read[last] != self.mask:
            found[next(iter(self.ids))].append(last)
        return found

    def neighbours(self) -> dict[int, list[list[Any]]]:
        """Of each token of the texts those nearest to it in the embedding; in the encoder's, where an encoder-decoder
        reads and writes it."""
        params, found = self.model.params, dict[int, list[list[Any]]]()
        for at, ids in self.ids.items():
            stem = params["encoder"].get("stem", params["stem"]) if at == ENCODER else params["stem"]
            if new := set(ids) - set(found):
                found |= page.neighbours(stem["tokens"], sorted(new), min(NEAR, self.config.vocab - 1))
        return found

    @cached_property
    def seen(self) -> dict[str, Any]:
        """What the model's places hold."""
        return page.observe(self.model.model, self.model.params, self.inputs, self.sinks)

    @cached_property
    def mask(self) -> int | None:
        """The id of a mask, of a model that predicts what is there in place of one."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        return self.model.markers.get(MASK) if tokenizer.mask is None else tokenizer.mask

    @cached_property
    def places(self) -> list[int]:
        """Where the model predicts a token: the next one everywhere, or that in place of each mask."""
        if isinstance(self.config.output, NoOutput):
            return []
        ids = self.ids[""]
        if self.config.causal:  # nothing predicts a soft token
            return [i for i, id in enumerate([*ids[1:], -1]) if self.soft is None or id != self.soft]
        return [i for i, id in enumerate(ids) if id == self.mask]

    # ------------------------------------------------------------ images

    @property
    def shows_tower(self) -> bool:
        """Whether a page holds the attention among the patches of the images."""
        return self.images is not None and vision_of(self.config).patches <= TOWER_PATCHES

    def patches(self) -> dict[str, list[int]]:
        """The patches of each image, as texts of ids below 0."""
        if not self.shows_tower:
            return {}
        assert self.images is not None
        ids = [-1 - i for i in range(vision_of(self.config).patches)]
        return {page.image_name(i): ids for i in range(len(self.images))}

    def towers(self) -> list[tuple[Attention, list[dict[str, Any]]]]:
        """What `page.towers` has to say of the images."""
        return page.towers(self.model.model, self.model.params, self.images) if self.shows_tower else []

    def pictures(self) -> list[dict[str, Any]]:
        """Each image as the model reads it: its name, a PNG in a data: URL, where its soft tokens begin in the text,
        how many of them and of the patches are on a side."""
        if self.images is None:
            return []
        vision, places = vision_of(self.config), np.flatnonzero(np.asarray(self.read) == self.soft)
        sides = dict(side=vision.grid // vision.pool, patches=vision.grid)
        starts = places[:: vision.soft_tokens].tolist()
        return [
            dict(name=page.image_name(i), src=_png(image), start=start, **sides)
            for i, (image, start) in enumerate(zip(self.images, starts, strict=True))
        ]

    # ------------------------------------------------------------ output

    def output(self) -> dict[str, Any]:
        """The likeliest tokens of each place, the probabilities of those that follow, and the lens by layer."""
        places, ids = self.places, np.array(self.ids[""])
        if not places:
            return dict(places=[], best=[], followed=[], lens=dict(places=[], best=[]), causal=self.config.causal)
        model, params, vocab = self.model.model, self.model.params, self.config.vocab
        after = np.append(ids[1:], 0)[places] if self.config.causal else None
        x = self.seen["last"][0][places]
        best, chances, followed = page.read_out(model, params, x, min(BEST, vocab), after)
        late = places[-LENS:]
        streams = self.seen["resid_post"][:, 0, late]
        flat = streams.reshape(-1, streams.shape[-1])
        tops, shares, _ = page.read_out(model, params, flat, min(OF_LAYER, vocab))
        size = len(late)
        lens = page.pairs(tops, shares)
        return dict(
            places=places,
            best=page.pairs(best, chances),
            followed=page.rounded(followed) if self.config.causal else [],
            lens=dict(places=late, best=[lens[i : i + size] for i in range(0, len(lens), size)]),
            causal=self.config.causal,
        )

    # ------------------------------------------------------------ what if

    def what_if(self, asked: WhatIf) -> list[dict[str, Any]]:
        """What is said at the last place, as it is and changed. Raises ValueError as `inside`."""
        heads = [self._head(text) for text in asked.zero]
        other = Look(self.model, asked.other) if asked.other else None
        if (heads or other) and not self.places:
            raise ValueError(
                "what if: this model predicts no next token here; of an encoder, put a mask ([MASK]) in --text"
            )
        if not heads and other is None:
            return []
        model, params, position = self.model.model, self.model.params, self.places[-1]
        now = self._distribution(self)
        found = []
        if heads:
            for name, after in zip(
                asked.zero, page.without_heads(model, params, self.inputs, heads, position), strict=True
            ):
                found.append(self._beside(f"without head {name}", now, after, position))
        if other is not None:
            self._check_other(other)
            then = self._distribution(other)
            rise = then - now
            pair = int(rise.argmax()), int(rise.argmin())
            grids = page.patched(model, params, self.inputs.tokens, other.inputs.tokens, position, pair)
            beside = self._beside("the other text", now, then, position)
            found.append({**beside, "patch": grids, "pair": list(pair), "other": other.read})
        return found

    def _distribution(self, look: "Look") -> np.ndarray:
        """The probabilities at the last place."""
        at = self.places[-1]
        model = self.model.model
        logits = model.logits(self.model.params, jnp.asarray(look.seen["last"][:, at : at + 1]))[0, 0]
        return np.asarray(jax.nn.softmax(logits))

    def _beside(self, title: str, before: np.ndarray, after: np.ndarray, position: int) -> dict[str, Any]:
        """Two distributions: the likeliest tokens of each, as [id, its probability, that in the other]."""

        def best(own: np.ndarray, other: np.ndarray) -> list[list[Any]]:
            ids = np.argsort(-own, kind="stable")[:BEST].tolist()
            return [[id, *page.rounded([own[id], other[id]])] for id in ids]

        both = dict(before=best(before, after), after=best(after, before))
        return dict(title=title, position=position, **both, divergence=page.divergence(before, after))

    def _check_other(self, other: "Look") -> None:
        if self.images is not None:
            raise ValueError("--patch-from is for text alone: leave out either it or --image")
        if self.config.has_encoder:
            raise ValueError("--patch-from is for models of one text: of an encoder-decoder, zero heads (--zero)")
        T, S = len(self.read), len(other.read)
        if T != S:
            raise ValueError(f"--patch-from has {S} tokens and --text {T}: patching needs as many")
        if T > PATCHED:
            raise ValueError(f"--patch-from of {T} tokens: each is patched in every layer, expected at most {PATCHED}")

    def _head(self, text: str) -> tuple[str, int, int]:
        """The place, layer and head that "3.5" or "cross.3.5" names."""
        name = next((one for one in ("encoder.", "cross.") if text.startswith(one)), "")
        cfg = self.config.encoder_config if name == "encoder." else self.config
        layer, dot, head = text.removeprefix(name).partition(".")
        if not (dot and layer.isdecimal() and head.isdecimal()):
            raise ValueError(f"head {text!r}: expected layer.head, as in 3.5, and of an encoder-decoder cross.3.5 too")
        if name and not self.config.has_encoder:
            raise ValueError(f"head {text!r}: this model has no encoder, expected layer.head, as in 3.5")
        if int(layer) >= cfg.layers:
            raise ValueError(f"head {text!r}: this model has layers 0 to {cfg.layers - 1}")
        heads = cfg.by_layer[int(layer)].mixer.sizes().get("heads", ("", 0))[1]
        if int(head) >= heads:
            have = f"heads 0 to {heads - 1}" if heads else "no attention heads"
            raise ValueError(f"head {text!r}: layer {layer} has {have}")
        return SIDES[name], int(layer), int(head)


def _png(image: np.ndarray) -> str:
    """An image, at most SHOWN pixels on a side, as a data: URL."""
    from PIL import Image

    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((SHOWN, SHOWN))
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _ids(part: Any) -> list[int]:
    """The ids in lists of [id, number, ...] within `part`."""
    if isinstance(part, dict):
        own = [*part.get("pair", []), *part.get("other", [])]
        return [*own, *(id for name in ("best", "before", "after", "lens") for id in _ids(part.get(name, [])))]
    if isinstance(part, list) and part and isinstance(part[0], int):
        return [part[0]]
    return [id for one in part for id in _ids(one)] if isinstance(part, list) else []
