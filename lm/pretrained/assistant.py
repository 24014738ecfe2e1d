"""A loaded model that answers through the engine (lm/tune/assistant.py)."""

from lm.decode.engine import Engine
from lm.decode.sampling import Sampling
from lm.pretrained.model import Pretrained
from lm.tune.assistant import Assistant


def assistant_of(
    model: Pretrained,
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    slots: int = 16,
    length: int = 0,
) -> Assistant:
    """`model`, answering `slots` prompts at a time, of up to `length` tokens with their answers (0: its context); other
    arguments as in Assistant. Raises ValueError for one without a tokenizer, or with an encoder."""
    if model.tokenizer is None:
        raise ValueError("this model came without a tokenizer: take a directory that has one")
    engine = Engine(*model.decoder, slots=slots, length=length)
    return Assistant(engine, model.tokenizer, model.stop_ids, max_new_tokens, sampling, seed)
