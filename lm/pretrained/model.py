"""A loaded model: logits, text, embeddings, and export."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.conversations import encode_text
from lm.data.images import ImageLike
from lm.decode.beam import BeamSearch, Hypothesis, search
from lm.decode.generate import check_prompts
from lm.decode.generate import stream as stream_ids
from lm.decode.images import check_marks
from lm.decode.layout import Decoder, for_decoding
from lm.decode.sampling import Sampling
from lm.decode.self_draft import SelfDraft
from lm.decode.speculative import Acceptance, Drafter, DraftModel
from lm.decode.speculative import stream as speculate
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.pretrained import files, gguf_save, passes
from lm.pretrained import save as saving
from lm.pretrained.architecture import Architecture
from lm.pretrained.arrays import BLOCK, as_integers, checked_like, cut, padded
from lm.pretrained.images import read_prompt
from lm.pretrained.known import expressed, without_modules
from lm.pretrained.labels import Labels
from lm.pretrained.sentences import Vectors
from lm.text.stop import StopStrings
from lm.text.tokenizer import Tokenizer

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters.

    Args:
      config: the model's.
      params: its parameters, float32.
      tokenizer: None where the model came without one.
      model: `config` with how it is computed.
      step: the updates of a run of ours; 0 for a published model.
      architecture: of a published model.
      ids: the token ids of a published model's config files (IDS).
      prefix: whether it reads a prompt in both directions (a run under PrefixLM).
      markers: names, in a text, of ids beyond the tokenizer's that stand for gaps (a run's [MASK] or <extra_id_0>).
      weights: by which it decodes, float32, bfloat16 or int8 (lm/decode/layout.py); logits are those of `params`.
      labels: what its scores mean, of a published model.
      unused: tensors of a published model that its class has and ours does not use (BertModel's pooler), by their name
        there: `save` writes them back, and the files `kept`: its tokenizer's, processors' and modules'.
      summary: what was read, in a line.
      vectors: how a text's vector is made of its states: by sentence-transformers' modules beside it.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    model: Transformer
    step: int = 0
    architecture: Architecture | None = None
    ids: Mapping[str, Any] = field(default_factory=dict)
    unused: Mapping[str, np.ndarray] = field(default_factory=dict)
    prefix: bool = False
    markers: Mapping[str, int] = field(default_factory=dict)
    weights: str = "float32"
    kept: Mapping[str, Path] = field(default_factory=dict)
    summary: str = ""
    labels: Labels = Labels()
    vectors: Vectors = Vectors()

    def logits(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        token_type_ids: Any = None,
        images: Any = None,
    ) -> jax.Array:
        """Token ids [B, T] -> float32 logits [B, T, V]; of an encoder without an output, its hidden states [B, T, D].
        Arguments and errors as `inputs` has them."""
        given = self.inputs(input_ids, attention_mask, decoder_input_ids, token_type_ids, images)
        return passes.logits(self.model, self.params, given)

    def inputs(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        token_type_ids: Any = None,
        images: Any = None,
    ) -> Inputs:
        """What the model reads, of arrays as transformers has them.

        Args:
          input_ids: [B, T], read by the encoder where there is one.
          attention_mask: [B, T], 0 for padding, on either side, whose results are undefined. Positions count from the
            left, padding included, as in transformers (RoBERTa's without it).
          decoder_input_ids: [B, T], whose logits an encoder-decoder returns.
          token_type_ids: [B, T], of a model that has token types.
          images: [B, M, size, size, 3] of uint8, the images of each row (`look_at` reads files); the ids have the
            model's `image_token` for each of their soft tokens, and of rows with fewer than M the last are ignored.

        Raises:
          ValueError: for ids, shapes or lengths that the model does not support.
        """
        ids = self._checked("token ids", input_ids)
        segments = None if attention_mask is None else checked_like("attention_mask", attention_mask, ids, 2)
        types = None
        if token_type_ids is not None:
            if not self.config.token_types:
                raise ValueError("token_type_ids: this model has no token types, leave them out")
            types = checked_like("token_type_ids", token_type_ids, ids, self.config.token_types)
        if not self.config.has_encoder:
            if decoder_input_ids is not None:
                raise ValueError("decoder_input_ids: this model has no encoder, so all its tokens are input_ids")
            blocks = None
            if images is not None:
                check_marks(ids.tolist(), images, self.config, "row", exact=False)
                blocks = (np.ones_like(ids) if segments is None else segments) if self.prefix else None
            more = dict(positions=self._positions(segments), images=images, blocks=blocks)
            return self._inputs(ids, segments=segments, token_types=types, **more)
        if decoder_input_ids is None:
            raise ValueError("this model has an encoder and a decoder: give decoder_input_ids too")
        segments = np.ones_like(ids) if segments is None else segments
        encoder = Inputs(jnp.asarray(ids), segments=jnp.asarray(segments))
        return self._inputs(self._checked("decoder ids", decoder_input_ids), encoder=encoder)

    def _positions(self, mask: np.ndarray | None) -> np.ndarray | None:
        """The positions of texts [B, T], 0 in the mask for padding; None where they are those in the row."""
        if mask is None or self.config.positions.counts_padding:
            return None
        return np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)

    def _inputs(self, tokens: np.ndarray, **others: Any) -> Inputs:
        return jax.tree.map(jnp.asarray, Inputs(tokens, **others))  # type: ignore[arg-type]

    def _checked(self, what: str, ids: Any) -> np.ndarray:
        ids = as_integers(what, ids)
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.config.context:
            raise ValueError(f"{what} of shape {ids.shape}: expected [B, T] with T from 1 to {self.config.context}")
        if ids.size and not (0 <= ids.min() and ids.max() < self.config.vocab):
            raise ValueError(f"{what} from {ids.min()} to {ids.max()}: the vocabulary is 0 to {self.config.vocab - 1}")
        return ids.astype(np.int32)

    def embed(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """The vector of each text, float32 [B, n]: of its last hidden states (an encoder-decoder's encoder's) what the
        modules beside the model make, or the mean. `prompt` names what stands before each ("": nothing; None: what the
        modules say). A text that is too long is cut, but keeps the ids that its tokenizer ends it with.

        Raises ValueError for a single text in place of a list, a text without tokens, or a prompt that is not known."""
        if isinstance(texts, str):
            raise ValueError("embed takes a list of texts: give [text]")
        before, most, around = self.vectors.prompt(prompt), self.vectors.longest(self.config), self.encode("")
        rows = [cut(self.encode(before + text), most, around) for text in texts]
        if [] in rows:
            raise ValueError(f"text {rows.index([])} has no tokens, so it has no vector: leave it out")
        return passes.vectors_of(self.model, self.params, self.vectors, rows)

    def embedder(self, rows: int, width: int) -> Callable[[np.ndarray, np.ndarray], jax.Array]:
        """What `embed` computes, compiled for int32 ids [rows, width] and their mask (0: padding): [rows, n]."""
        ids = jax.ShapeDtypeStruct((rows, width), jnp.int32)
        program = passes.vectors.lower(self.model, self.params, self.vectors, ids, ids).compile()
        return partial(program, self.params, self.vectors)

    def score(self, texts: Sequence[str | Sequence[Any] | Mapping[str, Any]]) -> np.ndarray:
        """The scores of texts, of conversations (lists of messages), or of records with `prompt` and `completion`, each
        read as training reads it, with its end: float32 [B], the rewards of a reward model; with more than one score a
        text, [B, n].

        Raises ValueError as `score_ids`, where one is no text or conversation, and where there is no tokenizer."""
        if isinstance(texts, str | Mapping):
            raise ValueError("score takes a list of texts: give [text]")
        tokenizer = self.checked_tokenizer()
        rows = list[list[int]]()
        for i, text in enumerate(texts):
            try:
                rows.append(encode_text(text, tokenizer))
            except ValueError as error:
                raise ValueError(f"text {i}: {error}") from None
        return self.score_ids(rows)

    def score_ids(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """The scores of rows of ids, read where the output says (a decoder's at the last token): float32 [B], or
        [B, n]. `types` are their token types.

        Raises ValueError for a model without scores of texts, and for rows that are empty or longer than the context.
        """
        if self.config.output.of_tokens:
            raise ValueError("this model has scores of tokens, and none of a text: see lm.pretrained.classify")
        n = self.config.output.scores
        out = np.stack([np.zeros(n, np.float32), *self.scores_of_ids(rows, types)])[1:]
        return out if n > 1 else out[:, 0]

    def scores_of_ids(
        self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]:
        """The scores of each row of ids, float32 [n], or those of its tokens, [T, n]; arguments and errors as
        `score_ids`."""
        most, each = self.config.context, self.config.output.of_tokens
        if not self.config.output.scores:
            raise ValueError("this model has no scores: expected a reward model, trained by Reward(), or a classifier")
        for i, row in enumerate(rows):
            if not 0 < len(row) <= most:
                raise ValueError(f"text {i} has {len(row):,} tokens: expected 1 to {most:,}, the model's context")
        out: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # so that little is padding
        for start in range(0, len(rows), BLOCK):
            block = by_length[start : start + BLOCK]
            ids, mask = padded([rows[i] for i in block], most)
            kinds = None if types is None else padded([types[i] for i in block], most)[0]
            found = passes.scores(self.model, self.params, self.inputs(ids, mask, token_type_ids=kinds))
            for i, scores in zip(block, np.asarray(found), strict=True):
                out[i] = scores[: len(rows[i])] if each else scores
        return out

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt with the control ids that the model expects (bos, [CLS] and [SEP], ...). Raises
        ValueError where there is no tokenizer."""
        return self.checked_tokenizer().encode_prompt(prompt)

    def checked_tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises ValueError where there is none."""
        if self.tokenizer is None:
            raise ValueError("this model came without a tokenizer: give token ids, or a directory that has one")
        return self.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text: of the model's config files, and of its tokenizer."""
        eos = self.ids.get("eos_token_id")
        own = [] if eos is None else eos if isinstance(eos, list) else [eos]
        return tuple(dict.fromkeys([*own, *(self.tokenizer.stop_ids if self.tokenizer else ())]))

    @cached_property
    def decoder(self) -> Decoder:
        """The model and its parameters, in the same memory, as they decode fastest."""
        return for_decoding(self.model, self.params, self.weights)

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        n: int = 1,
        stop: str | Sequence[str] = (),
        drafter: Drafter | None = None,
        draft_params: Params | None = None,
        acceptance: Acceptance | None = None,
        images: Sequence[ImageLike] = (),
    ) -> Iterator[list[str]]:
        """`n` continuations of `prompt` (of an encoder-decoder: outputs for it), streamed.

        Args:
          prompt: text.
          max_new_tokens: the most tokens of each continuation.
          sampling: temperature, top-k and top-p.
          seed: of the draws.
          n: continuations.
          stop: strings before the first of which a continuation ends.
          drafter, draft_params, acceptance: of speculative decoding, as in `stream_ids`.
          images: the images that the prompt is about, for a model with a vision tower (lm/pretrained/images.py).

        Yields:
          the new text of each continuation, complete characters only, and no part of a stop string.

        Raises:
          ValueError: as `stream_ids` and StopStrings, and where there is no tokenizer.
        """
        tokenizer = self.checked_tokenizer()
        read, pixels = self.encode(prompt), None
        if images:
            read, seen = read_prompt(prompt, images, self.config, tokenizer)
            pixels = np.repeat(seen[None], n, 0)
        before = [] if self.config.has_encoder else read
        texts = [(tokenizer.decoder_after(before), StopStrings(stop)) for _ in range(n)]
        if self.config.vocab > tokenizer.vocab_size:
            sampling = replace(sampling, vocab_size=tokenizer.vocab_size)
        prompts, draft = [read] * n, (drafter, draft_params, acceptance)
        for rows in self.stream_ids(prompts, max_new_tokens, sampling, seed, *draft, images=pixels):
            yield [end.push("".join(map(text.push, ids))) for (text, end), ids in zip(texts, rows, strict=True)]
            if all(end.found for _, end in texts):
                return
        yield [end.push(text.close()) + end.close() for text, end in texts]

    def stream_ids(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        drafter: Drafter | None = None,
        draft_params: Params | None = None,
        acceptance: Acceptance | None = None,
        images: np.ndarray | None = None,
    ) -> Iterator[list[list[int]]]:
        """The new ids of each prompt of ids, as they are drawn, up to one of `stop_ids`.

        Args:
          prompts: token ids, a list a row.
          max_new_tokens: the most new tokens of a row.
          sampling: how to draw.
          seed: of the draws.
          drafter: what drafts, for speculative decoding: a PromptLookup, a `draft_model`, or a SelfDraft.
          draft_params: the parameters of a draft model.
          acceptance: counts of drafted and accepted tokens, added to.
          images: the images of each prompt, uint8 [B, M, size, size, 3].

        Raises:
          ValueError: for an encoder alone, or a prompt that does not fit the context.
        """
        stop, own = self.stop_ids, self.decoder
        if images is not None:
            check_marks(prompts, images, self.config)
        if drafter is not None:
            if images is not None:
                raise ValueError("speculative decoding reads text alone: leave out the drafter, or the images")
            if isinstance(drafter, DraftModel) and draft_params:
                draft_model, draft_params = for_decoding(drafter.model, draft_params)
                drafter = replace(drafter, model=draft_model)
            elif isinstance(drafter, SelfDraft):
                drafter = replace(drafter, model=own.model)
            draft = drafter, draft_params, sampling, stop, seed, acceptance
            yield from speculate(own.model, own.params, prompts, max_new_tokens, *draft, prefix=self.prefix)
            return
        prompts, encoder = self._decoder_prompts(prompts)
        options = sampling, stop, seed, encoder, self.prefix, images
        yield from stream_ids(own.model, own.params, prompts, max_new_tokens, *options)

    def draft_model(self, draft: "Pretrained", tokens: int = 4) -> DraftModel:
        """The drafter that `draft` is for this model, `tokens` at a time; with its parameters, `draft.params`.

        Raises ValueError where the two have other tokens."""
        own, other = self.checked_tokenizer(), draft.checked_tokenizer()
        if list(own.table) != list(other.table) or own.controls != other.controls:
            raise ValueError("the draft model has another vocabulary: a draft needs the model's own tokens")
        return DraftModel(draft.model, tokens)

    def beam_search(
        self, prompt: str, max_new_tokens: int = 128, how: BeamSearch = BeamSearch()
    ) -> list[tuple[str, float]]:
        """The best continuations of `prompt` by beam search, and their scores: `how.n`, best first.

        Raises ValueError as `beam_search_ids`, and where there is no tokenizer."""
        tokenizer, prompts = self.checked_tokenizer(), [self.encode(prompt)]
        (found,) = self.beam_search_ids(prompts, max_new_tokens, how, min(tokenizer.vocab_size, self.config.vocab))
        return [(tokenizer.decode(ids), score) for ids, score in found]

    def beam_search_ids(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        how: BeamSearch = BeamSearch(),
        vocab_size: int = 0,
    ) -> list[list[Hypothesis]]:
        """The `how.n` best continuations of each prompt of ids, up to one of `stop_ids`; ids from `vocab_size` on are
        in none (0: no limit).

        Raises ValueError for an encoder alone, a prompt that does not fit the context, or too many beams."""
        prompts, encoder = self._decoder_prompts(prompts)
        options = how, self.stop_ids, encoder, vocab_size, self.prefix
        return search(self.decoder.model, self.decoder.params, prompts, max_new_tokens, *options)

    def _decoder_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Sequence[Sequence[int]], Inputs | None]:
        """What the decoder continues, and what the encoder reads, where there is one: the prompts."""
        self.config.check_generates()
        if not self.config.has_encoder:
            return prompts, None
        check_prompts(prompts, self.config.vocab, self.config.context, 0)
        ids, segments = padded(prompts, self.config.context)
        return [[self.decoder_start]] * len(prompts), Inputs(jnp.asarray(ids), segments=jnp.asarray(segments))

    @property
    def decoder_start(self) -> int:
        """The id with which an encoder-decoder's output begins."""
        declared = [self.ids.get(f"{name}_token_id") for name in ("decoder_start", "bos", "pad")]
        pad = self.tokenizer.pad if self.tokenizer else None
        return int(next(id for id in (*declared, pad, 0) if id is not None))

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        images: Sequence[ImageLike] = (),
    ) -> str:
        """One continuation of `prompt`.

        Args:
          prompt: text.
          max_new_tokens: the most tokens of the continuation.
          temperature: divides the logits; 0 is greedy.
          top_k: sample from the k most likely tokens; 0: all.
          top_p: sample from the most likely tokens of this mass.
          seed: of the draws.
          stop: strings before the first of which it ends.
          images: files or arrays, for a model with a vision tower; where the prompt has marks <image>, one for each.

        Raises:
          ValueError: as `stream`.
        """
        sampling = Sampling(temperature, top_k, top_p)
        return "".join(
            rows[0] for rows in self.stream(prompt, max_new_tokens, sampling, seed, stop=stop, images=images)
        )

    def save(self, directory: str | Path, shard_bytes: int = files.SHARD_BYTES) -> None:
        """Write a Hugging Face model directory that transformers and `load` read: config.json, generation_config.json,
        safetensors (in shards of at most `shard_bytes`), the tokenizer's files. An existing one is replaced atomically.

        Raises ValueError for a model that no published architecture can express."""
        architecture, cfg, params = expressed(self.config.scaled, self.params, self.architecture)
        roles = {} if self.tokenizer is None else self.tokenizer.roles
        ids = {f"{role}_token_id": roles[role] for role in ("bos", "pad") if role in roles} | dict(self.ids)
        if stops := self.stop_ids:
            ids["eos_token_id"] = list(stops) if stops[1:] else stops[0]
        if self.config.has_encoder and self.decoder_start != ids.get("bos_token_id"):
            ids["decoder_start_token_id"] = self.decoder_start
        more = self.unused if architecture == self.architecture else {}, self.kept, self.labels.fields()
        saving.save(Path(directory), architecture, cfg, params, self.tokenizer, ids, shard_bytes, *more)

    def save_gguf(self, file: str | Path, type: str = "f32") -> list[str]:
        """Write a GGUF file that llama.cpp and `load` read, its tokenizer, chat template and ends inside. An existing
        one is replaced atomically.

        Args:
          file: the GGUF file.
          type: of the matrices: f32, f16, bf16 or q8_0 (8 bits, in blocks of 32 with a float16 scale). Norms and biases
            are float32.

        Returns:
          the names of the tensors that are float16 since their rows are no whole blocks of q8_0.

        Raises:
          ValueError: for a model or a tokenizer that llama.cpp cannot express.
        """
        own = without_modules(self.config.scaled, self.params)
        return gguf_save.save(Path(file), *own, self.tokenizer, self.stop_ids, type)
