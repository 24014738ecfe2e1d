"""How many pieces should a tokenizer have? 512 to 4,096, compared in bits per byte at equal FLOPs.

    lm study experiments.ablations.vocabulary

A loss a token says nothing across tokenizers; bits per byte of the same text do. Tao et al. (2407.13623) find the best
vocabulary to grow with the compute, and small ones best for small budgets.

Measured (3 seeds, about 1 min a run on 1 CPU core; mean bits per byte, the difference with its paired 95% interval):

    vocabulary   bits per byte   against 1,024              tokens   parameters
    512          2.980           +0.225 (0.216 to 0.234)    114k     382k
    1,024        2.755                                      102k     431k
    4,096        2.634           -0.121 (0.102 to 0.140)    65k      726k

Not found again in this range: the largest vocabulary is best, on both sources, though the budget is tiny. A token of it
holds more text, so that the same FLOPs read more of it; where the best one lies cannot be told from these three.
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
