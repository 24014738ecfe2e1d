"""Masked language modelling: which tokens are hidden, behind what, and asked for (BERT, 1810.04805, section 3.1)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.data.objective import ANY, Batch, Chance, Objective, Reads, Rows, Setting, positions, unseeded

HIDDEN, REPLACED = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (1810.04805, appendix A.1)


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Predict a share `rate` of a row's tokens from all the others: of those chosen 80% are hidden behind the mask, 10%
    are another token of the vocabulary, 10% stay. With `whole_words` the pieces of a word are chosen together.

    The mask is the tokenizer's own, else the first id after its vocabulary. bos and eos are never chosen."""

    rate: float = 0.15
    whole_words: bool = False

    asked: ClassVar[str] = "masked token"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"objective.rate={self.rate}: expected a share between 0 and 1, for instance 0.15")

    def batch(self, rows: Rows, setting: Setting = ANY, chance: Chance = unseeded) -> Batch:
        tokens, documents, segments = (array[:, :-1].astype(np.int32) for array in rows)
        open_ = (documents > 0) & ~setting.special[tokens]
        chosen, hidden = np.zeros_like(open_), tokens.copy()
        for i, row in enumerate(tokens):
            random = chance(i)
            chosen[i] = self._chosen(open_[i], setting.word_starts[row] | _begins(documents[i]), random)
            hidden[i] = np.where(chosen[i], self._replaced(row, setting, random), row)
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


def mask_id(setting: Setting) -> int:
    """The id that hides a token."""
    return setting.vocab if setting.mask is None else setting.mask


def _begins(keys: np.ndarray) -> np.ndarray:
    """[T]: where a run of equal keys begins."""
    return np.concatenate([[True], keys[1:] != keys[:-1]])
