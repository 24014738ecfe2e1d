"""Masked language modelling (BERT, 1810.04805, section 3.1): which tokens are targets, and what the model reads in
their place; and BERT's second task, next-sentence prediction (lm/data/pairs.py)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.bounds import Share
from lm.data.objective import (
    NO_CONTEXT,
    Batch,
    ModelTraits,
    Objective,
    ObjectiveContext,
    RowRng,
    Rows,
    check_logits,
    default_row_rng,
    positions,
)
from lm.data.pairs import paired, text_tokens

MASKED, RANDOM = 0.8, 0.1  # of the selected tokens; the rest stay unchanged (1810.04805, appendix A.1)


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Predict a fraction `rate` of a row's tokens from all the others: of those selected 80% become [MASK], 10% a
    random token of the vocabulary, 10% stay. With `whole_words` the pieces of a word are selected together. With
    `next_sentence` a row is two texts, and whether the second follows the first is predicted too.

    The mask is the tokenizer's own, else the first id after its vocabulary. bos and eos are never selected.
    Raises ValueError for a rate outside (0, 1)."""

    rate: Share = 0.15
    whole_words: bool = False
    next_sentence: bool = False

    target_name: ClassVar[str] = "masked token"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(
                f"{type(self).__name__}.rate={self.rate}: expected a fraction between 0 and 1, for instance 0.15"
            )

    @property
    def measures(self) -> tuple[str, ...]:
        return (*super().measures, *(["next_sentence"] if self.next_sentence else []))

    @property
    def reads_row_pairs(self) -> bool:
        return self.next_sentence

    def row_tokens(self, context: ObjectiveContext) -> int:
        return text_tokens(context) if self.next_sentence else context.seq_len

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        random = [row_rng(i) for i in range(len(rows.tokens) // (1 + self.next_sentence))]
        if not self.next_sentence:
            return self._masked(Rows(*(array[:, :-1].astype(np.int32) for array in rows)), context, random)
        pairs = paired(rows, context, random)
        return {
            **self._masked(Rows(*pairs[:3], pairs.segments), context, random),
            "token_types": pairs.types,
            "next_sentence": pairs.classes,
            "next_sentence_weights": pairs.weights,
        }

    def _masked(self, rows: Rows, context: ObjectiveContext, random: list[np.random.Generator]) -> Batch:
        """The batch of rows [R, T]."""
        tokens, documents, segments = rows[:3]
        candidates = (documents > 0) & ~context.special[tokens]
        selected, corrupted = np.zeros_like(candidates), tokens.copy()
        for i, row in enumerate(tokens):
            starts = context.word_starts[row] | _run_starts(documents[i])
            selected[i] = self._select(candidates[i], starts, random[i])
            corrupted[i] = np.where(selected[i], self._replacements(row, context, random[i]), row)
        return {
            "tokens": corrupted,
            "targets": tokens,
            "weights": selected.astype(np.float32),
            "segment_ids": segments,
            "positions": positions(segments),
        }

    def _select(self, candidates: np.ndarray, starts: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """[T]: round(rate * candidates) of the candidates, at least one; of whole words as many as fit in that
        number."""
        order, selected = random.permutation(len(candidates)), np.zeros_like(candidates)
        budget = max(1, round(self.rate * int(candidates.sum())))
        if not self.whole_words:
            selected[order[candidates[order]][:budget]] = True
            return selected
        word = np.cumsum(starts | _run_starts(candidates))
        for w in dict.fromkeys(word[order[candidates[order]]].tolist()):  # a word is as likely as it has pieces: fair
            pieces = (word == w) & candidates
            if (size := int(pieces.sum())) <= budget:
                selected |= pieces
                budget -= size
            if not budget:
                break
        return selected

    def _replacements(self, row: np.ndarray, context: ObjectiveContext, random: np.random.Generator) -> np.ndarray:
        """[T]: what the model reads in the place of each token, were it selected."""
        draw, other = random.random(len(row)), random.integers(context.vocab, size=len(row))
        unmasked = np.where(draw < MASKED + RANDOM, other, row)
        return np.where(draw < MASKED, mask_id(context), unmasked)

    def markers(self, context: ObjectiveContext) -> dict[str, int]:
        return {"[MASK]": mask_id(context)} if context.mask is None else {}

    def extra_tokens(self, context: ObjectiveContext) -> int:
        return int(context.mask is None)

    def check(self, model: ModelTraits) -> None:
        check_logits(self, model)
        if model.causal or model.has_encoder:
            raise ValueError(
                "MaskedLM needs an encoder alone, which is bidirectional: set model.causal=False and "
                "model.encoder_layers=0, or take CausalLM() or SpanCorruption()"
            )
        if self.next_sentence and not (model.output.next_sentence and model.token_types >= 2):
            raise ValueError(
                f"MaskedLM with next_sentence needs an output for it and types of tokens, and "
                f"model.output.next_sentence={model.output.next_sentence}, model.token_types={model.token_types}: "
                "set model.output.next_sentence=True and model.token_types=2, or next_sentence=False in the objective"
            )


def mask_id(context: ObjectiveContext) -> int:
    """The id of [MASK]."""
    return context.vocab if context.mask is None else context.mask


def _run_starts(keys: np.ndarray) -> np.ndarray:
    """[T] bool: where a run of equal keys starts."""
    return np.concatenate([[True], keys[1:] != keys[:-1]])
