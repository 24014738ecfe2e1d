"""A trained model at hand: ask it for logits, text or vectors, and write it for other tools."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.generate import check_prompts
from lm.decode.generate import stream as stream_ids
from lm.decode.sampling import Sampling
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.output import NoOutput
from lm.model.transformer import Params, Transformer
from lm.pretrained import files
from lm.pretrained import save as saving
from lm.pretrained.architecture import Architecture
from lm.pretrained.known import architecture_for
from lm.text.tokenizer import Tokenizer

BLOCK = 32  # texts are read so many at a time, padded to a multiple of it: like lengths share a compiled program
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and tokenizer (None where its directory has none). `step` is how many updates it has
    had in a run of ours; `architecture` what a published one calls itself, and `ids` the token ids that its files name
    (eos_token_id, ...)."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    model: Transformer
    step: int = 0
    architecture: Architecture | None = None
    ids: Mapping[str, Any] = field(default_factory=dict)

    def logits(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        token_type_ids: Any = None,
    ) -> jax.Array:
        """Token ids [B, T] -> float32 logits [B, T, V]; of an encoder without an output, its hidden states [B, T, D].

        `attention_mask` [B, T] is 0 for padding, on either side; what stands at padding means nothing. Positions count
        from the left, padding included, as transformers' models do. An encoder-decoder reads `input_ids` and gives the
        logits of `decoder_input_ids`. Raises ValueError for ids, shapes or lengths that the model cannot take."""
        ids = self._checked("token ids", input_ids)
        segments = None if attention_mask is None else _like("attention_mask", attention_mask, ids, 2)
        types = None
        if token_type_ids is not None:
            if not self.config.token_types:
                raise ValueError("token_type_ids: this model has no token types, leave them out")
            types = _like("token_type_ids", token_type_ids, ids, self.config.token_types)
        if not self.config.has_encoder:
            if decoder_input_ids is not None:
                raise ValueError("decoder_input_ids: this model has no encoder, so all its tokens are input_ids")
            return self._run(ids, segments=segments, token_types=types)
        if decoder_input_ids is None:
            raise ValueError("this model has an encoder and a decoder: give decoder_input_ids too")
        segments = np.ones_like(ids) if segments is None else segments
        encoder = Inputs(jnp.asarray(ids), segments=jnp.asarray(segments))
        return self._run(self._checked("decoder ids", decoder_input_ids), encoder=encoder)

    def _run(self, tokens: np.ndarray, **others: Any) -> jax.Array:
        return _logits(self.model, self.params, jax.tree.map(jnp.asarray, Inputs(tokens, **others)))  # type: ignore[arg-type]

    def _checked(self, what: str, ids: Any) -> np.ndarray:
        ids = _whole(what, ids)
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.context:
            raise ValueError(f"{what} of shape {ids.shape}: expected [B, T] with T from 1 to {self.config.context}")
        if ids.size and not (0 <= ids.min() and ids.max() < self.config.vocab):
            raise ValueError(f"{what} from {ids.min()} to {ids.max()}: the vocabulary is 0 to {self.config.vocab - 1}")
        return ids.astype(np.int32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The mean of the last hidden states (of an encoder-decoder: the encoder's) of each text's tokens: float32
        [B, D]. A text longer than the context loses the end, but for its last token.

        Raises ValueError for a text alone, or one without tokens."""
        if isinstance(texts, str):
            raise ValueError("embed takes a list of texts: give [text]")
        rows, most = [self.encode(text) for text in texts], self.config.context
        if [] in rows:
            raise ValueError(f"text {rows.index([])} has no tokens, so it has no vector: leave it out")
        rows = [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in rows]
        found = [np.zeros((0, self.config.width), np.float32)]
        for start in range(0, len(rows), BLOCK):
            found.append(np.asarray(_mean(self.model, self.params, *_padded(rows[start : start + BLOCK], most))))
        return np.concatenate(found)

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt, with what the model expects around a text (bos, [CLS] and [SEP], ...)."""
        return self._tokenizer().encode_prompt(prompt)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model came without a tokenizer: give token ids, or a directory that has one")
        return self.tokenizer

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids that end a text: what the model's files say, and its tokenizer."""
        said = self.ids.get("eos_token_id")
        own = [] if said is None else said if isinstance(said, list) else [said]
        return tuple(dict.fromkeys([*own, *(self.tokenizer.stops if self.tokenizer else ())]))

    def stream(
        self, prompt: str, max_new_tokens: int = 128, sampling: Sampling = Sampling(), seed: int = 0, n: int = 1
    ) -> Iterator[list[str]]:
        """`n` continuations of `prompt` (of an encoder-decoder: answers to it): at each yield the new text of each,
        complete characters only."""
        texts = [self._tokenizer().incremental_decoder() for _ in range(n)]
        for rows in self.stream_ids([self.encode(prompt)] * n, max_new_tokens, sampling, seed):
            yield ["".join(map(text.push, ids)) for text, ids in zip(texts, rows, strict=True)]
        yield [text.close() for text in texts]

    def stream_ids(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling = Sampling(), seed: int = 0
    ) -> Iterator[list[list[int]]]:
        """The new ids of each prompt of ids, as they are drawn, up to one of `stops`.

        Raises ValueError for an encoder alone, which does not write."""
        if not self.config.causal:
            raise ValueError("this model is an encoder: it has logits and vectors, but writes no text")
        encoder: Inputs | None = None
        if self.config.has_encoder:
            check_prompts(prompts, self.config.vocab, self.config.context, 0)
            ids, segments = _padded(prompts, self.config.context)
            encoder = Inputs(jnp.asarray(ids), segments=jnp.asarray(segments))
            prompts = [[self._decoder_start()]] * len(prompts)
        yield from stream_ids(self.model, self.params, prompts, max_new_tokens, sampling, self.stops, seed, encoder)

    def _decoder_start(self) -> int:
        said = (self.ids.get("decoder_start_token_id"), self.ids.get("pad_token_id"))
        pad = self.tokenizer.pad if self.tokenizer else None
        return int(next(id for id in (*said, pad, 0) if id is not None))

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """One continuation of `prompt`, greedy unless a temperature is given."""
        sampling = Sampling(temperature, top_k, top_p)
        return "".join(rows[0] for rows in self.stream(prompt, max_new_tokens, sampling, seed))

    def save(self, directory: str | Path, shard_bytes: int = files.SHARD_BYTES) -> None:
        """Write a Hugging Face model directory that transformers and `load` read: config.json, generation_config.json,
        safetensors (several files past `shard_bytes`), the tokenizer's files. A model directory that is there is
        replaced, as a whole.

        Raises ValueError for a model that no published architecture says."""
        cfg = self.config.scaled  # others know no other parametrisation than the standard one
        architecture = architecture_for(cfg, self.architecture)
        roles = {} if self.tokenizer is None else self.tokenizer.roles
        ids = {f"{role}_token_id": roles[role] for role in ("bos", "pad") if role in roles} | dict(self.ids)
        if stops := self.stops:
            ids["eos_token_id"] = list(stops) if stops[1:] else stops[0]
        if self.config.has_encoder:
            ids["decoder_start_token_id"] = self._decoder_start()
        saving.save(Path(directory), architecture, cfg, self.params, self.tokenizer, ids, shard_bytes)


def _whole(what: str, values: Any) -> np.ndarray:
    """`values` as an array of whole numbers."""
    try:
        found = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{what} of several lengths: pad them to one, and say which are real in attention_mask"
        ) from None
    if found.size and found.dtype.kind not in "iub":
        raise ValueError(f"{what} of {found.dtype}: expected whole numbers")
    return found


def _like(what: str, values: Any, ids: np.ndarray, below: int) -> np.ndarray:
    """`values`, of the shape of `ids`, from 0 to `below`."""
    values = _whole(what, values)
    if values.shape != ids.shape:
        raise ValueError(f"{what} of shape {values.shape}: expected that of the token ids, {ids.shape}")
    if values.size and not (0 <= values.min() and values.max() < below):
        raise ValueError(f"{what} from {values.min()} to {values.max()}: expected 0 to {below - 1}")
    return values.astype(np.int32)


def _padded(rows: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, none longer than `most`, padded on the right, and which of them are real: both int32 [B, T]."""
    width = min(most, -(-max(map(len, rows)) // BLOCK) * BLOCK)
    mask = np.stack([np.arange(width) < len(row) for row in rows]).astype(np.int32)
    ids = np.zeros_like(mask)
    ids[mask > 0] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return ids, mask


@partial(jax.jit, static_argnums=0)
def _logits(model: Transformer, params: Params, inputs: Inputs) -> jax.Array:
    return model(params, inputs)


@partial(jax.jit, static_argnums=0)
def _mean(model: Transformer, params: Params, ids: Any, mask: Any) -> jax.Array:
    inputs = Inputs(ids, segments=mask)
    if model.cfg.has_encoder:
        x = model.encode(params, inputs)
    else:
        states = replace(model, cfg=replace(model.cfg, output=NoOutput(), tied=True))  # their last norm is the head's
        x = states.logits(params, model.hidden(params, inputs).x)
    weights = mask[..., None].astype(jnp.float32)
    return (x.astype(jnp.float32) * weights).sum(1) / weights.sum(1)
