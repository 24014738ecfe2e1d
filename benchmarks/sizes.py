"""The models that every side builds: the same shapes, the same batch, the same arithmetic.

No dropout, AdamW (betas 0.9, 0.99, decay 0.1 on matrices), gradients clipped at norm 1, the embedding tied to the head.
"""

from dataclasses import dataclass

LEARNING_RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0
BATCHES = 8  # different batches of random tokens that a side trains on in turn


@dataclass(frozen=True)
class Size:
    """A model and its batch: `seq` tokens a sequence, `batch` sequences a step; `mlp` is the width of the feed-forward,
    or of each of the `experts`, of which a token takes two."""

    peer: str
    layers: int
    heads: int
    width: int
    mlp: int
    vocab: int
    seq: int
    batch: int
    experts: int = 0

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch * self.seq


SIZES = {
    # nanoGPT's config/train_shakespeare_char.py, at the batch of its CPU instructions
    "baby": Size("nanogpt", layers=6, heads=6, width=384, mlp=1536, vocab=65, seq=256, batch=12),
    # the CPU command of nanoGPT's README
    "cpu": Size("nanogpt", layers=4, heads=4, width=128, mlp=512, vocab=65, seq=64, batch=12),
    "llama": Size("llama", layers=8, heads=8, width=512, mlp=1376, vocab=8192, seq=512, batch=8),
    "mixtral": Size("mixtral", layers=4, heads=8, width=512, mlp=1024, vocab=8192, seq=512, batch=4, experts=8),
}
