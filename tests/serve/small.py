"""A tiny random model with bytes as tokens, served in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from starlette.testclient import TestClient

from lm.decode.engine import Engine
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.pretrained.model import Pretrained
from lm.serve.call import Limits
from lm.serve.start import USUAL, application
from lm.text.tokenizer import ByteTokenizer
from tests.model.reference import SIMPLE, lively

CONTEXT, SLOTS = 300, 4
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BIAS = {str(id): -100 for id in range(258) if not 32 <= id < 127}  # printable ASCII alone, and no end


@cache
def model() -> Pretrained:
    cfg = llama(vocab=261, layers=2, width=16, heads=4, kv_heads=2, mlp=20, context=CONTEXT)
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = TEMPLATE
    return Pretrained(cfg, lively(cfg), tokenizer, Transformer(cfg, replace(SIMPLE, unroll=0)))


def engine() -> Engine:
    return Engine(model().model, model().params, SLOTS)


@cache
def warm() -> bool:
    engine().warm_up()
    return True


@contextmanager
def client(limits: Limits = USUAL, own: Engine | None = None, **options: Any) -> Iterator[TestClient]:
    """A client of a server with `options`; 5xx are answers too."""
    warm()
    app = application(model(), "tiny", own or engine(), limits, **options)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
