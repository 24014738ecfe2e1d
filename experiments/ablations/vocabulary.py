"""How many pieces should a tokenizer have? 512 to 4,096, compared in bits per byte at equal FLOPs.

    lm study experiments.ablations.vocabulary

A loss a token says nothing across tokenizers; bits per byte of the same text do. Tao et al. (2407.13623) find the best
vocabulary to grow with the compute, and small ones best for small budgets.

Not measured yet.
"""

from experiments.ablations.small import experiment as small
from lm.study.ablation import Ablation


def pieces(vocab: int) -> dict[str, object]:
    """A tokenizer, and a model, of `vocab` pieces."""
    return dict(model=dict(vocab=vocab), data=dict(tokenizer=dict(vocab_size=vocab)))


vocabulary = Ablation(
    small,
    arms={"1024": {}, **{str(size): pieces(size) for size in (512, 4096)}},
    seeds=range(3),
    measure="bits_per_byte",
)
