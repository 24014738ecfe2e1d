"""A tiny random model with bytes as tokens and a chat template, which answers."""

from dataclasses import replace
from functools import cache
from typing import Any

from lm.model.families import llama, scorer
from lm.model.transformer import Transformer
from lm.pretrained.assistant import assistant_of
from lm.pretrained.model import Pretrained
from lm.text.tokenizer import Bytes
from lm.tune.assistant import Assistant
from tests.model.reference import SIMPLE, lively

CONTEXT = 600
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
TEXTS = llama(vocab=258, layers=1, width=16, heads=2, kv_heads=1, mlp=20, context=CONTEXT)


@cache
def model(scores: bool = False) -> Pretrained:
    cfg = scorer(TEXTS) if scores else TEXTS
    tokenizer = Bytes().make([])
    tokenizer.chat_template = TEMPLATE
    return Pretrained(cfg, lively(cfg), tokenizer, Transformer(cfg, replace(SIMPLE, unroll=0)))


def assistant(**given: Any) -> Assistant:
    return assistant_of(model(), **{"max_new_tokens": 6, "slots": 4, **given})
