"""A model that answers through the engine: many prompts at once, each with the same bits in any company."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.decode.engine import Engine, Request
from lm.decode.generate import NonFiniteLogits
from lm.decode.sampling import NONE, Sampling
from lm.text.chat import apply_chat_template, encode_chat_prompt, missing_bos
from lm.text.tokenizer import Tokenizer
from lm.tune.reward_functions import Completion

Messages = Sequence[Mapping[str, Any]]
AHEAD = 100.0  # nats by which labels are made likelier than all other tokens


@dataclass(frozen=True)
class Assistant:
    """A model in an `engine`, with its `tokenizer` and the ids that `stop` it. It answers by up to `max_new_tokens`,
    drawn by `sampling`; a draw is a function of the `seed` and the index that it is asked for."""

    engine: Engine
    tokenizer: Tokenizer
    stop: tuple[int, ...]
    max_new_tokens: int = 256
    sampling: Sampling = Sampling()
    seed: int = 0

    def write(self, prompts: Sequence[Sequence[int]], indices: Sequence[int]) -> list[Completion]:
        """The continuation of each prompt of ids. Raises ValueError for one that does not fit, and NonFiniteLogits."""
        most = self.tokenizer.vocab_size
        sampling = replace(self.sampling, vocab_size=most) if self.engine.vocab > most else self.sampling
        requests = [
            Request(ids, self.max_new_tokens, sampling, self.stop, self.seed, index)
            for ids, index in zip(prompts, indices, strict=True)
        ]
        return [self._completion(outputs) for outputs in self.engine.generate(requests)]

    def _completion(self, outputs: Sequence[Any]) -> Completion:
        if outputs[-1].finish_reason == "not finite":
            raise NonFiniteLogits
        ids = [output.token for output in outputs if output.token != NONE]
        return Completion.of(self.tokenizer.decode(ids), len(outputs), outputs[-1].finish_reason == "stop")

    def encode(self, conversation: Messages, begun: str = "") -> list[int]:
        """The ids after which the answer to a conversation goes on that has `begun` so. Raises ValueError where the
        tokenizer has no chat template, or it refuses the conversation."""
        if not begun:
            return encode_chat_prompt(self.tokenizer, conversation)
        ids = self.tokenizer.encode(apply_chat_template(self.tokenizer, conversation, True) + begun, parse_special=True)
        return [*missing_bos(self.tokenizer, ids), *ids]

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether a prompt leaves room for an answer."""
        return len(ids) + self.max_new_tokens <= self.engine.length

    def choose(self, conversations: Sequence[Messages], begun: str, labels: Sequence[str]) -> np.ndarray:
        """The probabilities [n, L] of L `labels`, among one another, as what follows `begun` in the answer to each of n
        conversations. Raises ValueError where they are not told apart by one token each, or one does not fit."""
        asked = [self._labels(conversation, begun, labels) for conversation in conversations]
        requests = [self._choice(ids, tokens) for ids, tokens in asked]
        tops = [dict(outputs[0].top) for outputs in self.engine.generate(requests)]
        logprobs = [[top[token] for token in tokens] for top, (_, tokens) in zip(tops, asked, strict=True)]
        weights = np.exp(np.reshape(logprobs, (len(asked), len(labels))))
        return np.asarray(weights / weights.sum(1, keepdims=True))

    def _labels(self, conversation: Messages, begun: str, labels: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids that all labels have before them, and the one of each."""
        rows = [self.encode(conversation, begun + label) for label in labels]
        same = next((i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), 0)
        tokens = [row[same] for row in rows]
        if len(set(tokens)) < len(rows) or any(len(row) != same + 1 for row in rows):
            raise ValueError(f"{', '.join(map(repr, labels))} after {begun!r}: expected labels of one token each")
        return rows[0][:same], tokens

    def _choice(self, ids: Sequence[int], tokens: Sequence[int]) -> Request:
        """A request whose log-probabilities are those of `tokens` among one another."""
        ahead = Sampling(logit_bias=tuple((token, AHEAD) for token in tokens))
        return Request(ids, 1, ahead, (), self.seed, top_logprobs=len(tokens), processed=True)
