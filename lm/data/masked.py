"""Masked language modelling: which tokens are hidden, behind what, and asked for (BERT, 1810.04805, section 3.1); and
its second task, whether one text follows another (lm/data/pairs.py)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.data.objective import ANY, Batch, Chance, Objective, Reads, Rows, Setting, positions, unseeded
from lm.data.pairs import paired, text_tokens

HIDDEN, REPLACED = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (1810.04805, appendix A.1)


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Predict a share `rate` of a row's tokens from all the others: of those chosen 80% are hidden behind the mask, 10%
    are another token of the vocabulary, 10% stay. With `whole_words` the pieces of a word are chosen together.
    With `next_sentence` a row is two texts, and whether the second follows the first is asked too.

    The mask is the tokenizer's own, else the first id after its vocabulary. bos and eos are never chosen."""

    rate: float = 0.15
    whole_words: bool = False
    next_sentence: bool = False

    asked: ClassVar[str] = "masked token"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"objective.rate={self.rate}: expected a share between 0 and 1, for instance 0.15")

    @property
    def measures(self) -> tuple[str, ...]:
        return (*super().measures, *(["next_sentence"] if self.next_sentence else []))

    @property
    def in_pairs(self) -> bool:
        return self.next_sentence

    def row_tokens(self, setting: Setting) -> int:
        return text_tokens(setting) if self.next_sentence else setting.seq_len

    def batch(self, rows: Rows, setting: Setting = ANY, chance: Chance = unseeded) -> Batch:
        random = [chance(i) for i in range(len(rows.tokens) // (1 + self.next_sentence))]
        if not self.next_sentence:
            return self._masked(Rows(*(array[:, :-1].astype(np.int32) for array in rows)), setting, random)
        pairs = paired(rows, setting, random)
        return {
            **self._masked(Rows(*pairs[:3]), setting, random),
            "token_types": pairs.types,
            "next_sentence": pairs.classes,
            "next_sentence_weights": pairs.weights,
        }

    def _masked(self, rows: Rows, setting: Setting, random: list[np.random.Generator]) -> Batch:
        """The batch of rows that are as long as it is."""
        tokens, documents, segments = rows
        open_ = (documents > 0) & ~setting.special[tokens]
        chosen, hidden = np.zeros_like(open_), tokens.copy()
        for i, row in enumerate(tokens):
            starts = setting.word_starts[row] | _begins(documents[i])
            chosen[i] = self._chosen(open_[i], starts, random[i])
            hidden[i] = np.where(chosen[i], self._replaced(row, setting, random[i]), row)
        return {
            "tokens": hidden,
            "targets": tokens,
            "weights": chosen.astype(np.float32),
            "segment_ids": segments,
            "positions": positions(segments),
        }

    def _chosen(self, open_: np.ndarray, starts: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """[T]: round(rate x the open tokens) of them, at least one; by whole words at most as many, where they fit."""
        order, chosen = random.permutation(len(open_)), np.zeros_like(open_)
        most = max(1, round(self.rate * int(open_.sum())))
        if not self.whole_words:
            chosen[order[open_[order]][:most]] = True
            return chosen
        word = np.cumsum(starts | _begins(open_))
        left = most
        for w in dict.fromkeys(word[order[open_[order]]].tolist()):  # each word as often as it has pieces: fair
            pieces = (word == w) & open_
            if (size := int(pieces.sum())) <= left:
                chosen |= pieces
                left -= size
            if not left:
                break
        return chosen

    def _replaced(self, row: np.ndarray, setting: Setting, random: np.random.Generator) -> np.ndarray:
        """[T]: what stands in the place of each token, were it chosen."""
        fate, other = random.random(len(row)), random.integers(setting.vocab, size=len(row))
        behind = np.where(fate < HIDDEN + REPLACED, other, row)
        return np.where(fate < HIDDEN, mask_id(setting), behind)

    def extra_tokens(self, setting: Setting) -> int:
        return int(setting.mask is None)

    def check(self, model: Reads) -> None:
        if model.causal or model.encoder_layers:
            raise ValueError(
                f"MaskedLM asks a model that sees both sides, and model.causal={model.causal}, "
                f"model.encoder_layers={model.encoder_layers}: set causal=False and encoder_layers=0, "
                "or take CausalLM() or SpanCorruption()"
            )
        if self.next_sentence and not (model.output.next_sentence and model.token_types >= 2):
            raise ValueError(
                f"MaskedLM with next_sentence asks whether one of two texts follows the other, and "
                f"model.output.next_sentence={model.output.next_sentence}, model.token_types={model.token_types}: "
                "set model.output.next_sentence=True and model.token_types=2, or objective.next_sentence=False"
            )


def mask_id(setting: Setting) -> int:
    """The id that hides a token."""
    return setting.vocab if setting.mask is None else setting.mask


def _begins(keys: np.ndarray) -> np.ndarray:
    """[T]: where a run of equal keys begins."""
    return np.concatenate([[True], keys[1:] != keys[:-1]])
