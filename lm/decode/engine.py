"""Continuous batching (Orca, OSDI 2022): requests come and go in a fixed number of slots, and a step decodes them all.

    engine = Engine(model, params, slots=16)
    number = engine.submit(Request(ids, max_new_tokens=64, sampling=Sampling(0.7), stop=(2,), seed=1))
    while engine.busy:
        for output in engine.step():
            ...

Prompts are read in chunks between the steps of the others. A request's tokens and the bits of its log-probabilities do
not depend on its neighbours, on when it arrived, on its slot, or on whether another request had the same beginning.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode import slots as device
from lm.decode.generate import check_prompts
from lm.decode.grammar import Constraint, Matcher
from lm.decode.images import Part, check_images, parts_of
from lm.decode.layout import is_streamed, unstack
from lm.decode.sampling import NONE, Sampling
from lm.decode.slots import STRIDE, TOGETHER, Drawn, Options, empty_slots
from lm.model.cache import TokenCache
from lm.model.transformer import Params, Transformer

ALL = 2**32 - 1  # a bit for each of 32 tokens
CHUNKS = 256, 32  # tokens of a prompt that are read at a time; a shared beginning is kept by the first
ENOUGH = 3  # prompts of which chunks are worth reading together


@dataclass(frozen=True)
class Request:
    """A prompt of token ids to be continued by up to `max_new_tokens`, to before one of the ids `stop`; drawn as
    `generate` draws row `index` with this `seed`.

    `top_logprobs` is how many alternatives of each token are given, up to 20. Log-probabilities are the model's own,
    or with `processed` those that the token was drawn from, after penalties, temperature and filters. With
    `prompt_logprobs` those of the prompt's tokens are given too, always the model's own. The text is one of `grammar`
    (lm/decode/grammar.py), and ends where that has no more. `images` are those that the prompt has places for, in their
    order, uint8 [M, size, size, 3]."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: Sequence[int] = ()
    seed: int = 0
    index: int = 0
    top_logprobs: int = 0
    processed: bool = False
    prompt_logprobs: bool = False
    grammar: Constraint | None = None
    images: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.top_logprobs <= device.TOP:
            raise ValueError(f"top_logprobs={self.top_logprobs}: expected 0 to {device.TOP}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: expected at least 1")


class TokenLogprob(NamedTuple):
    """A token's log-probability, and (id, log-probability) of the likeliest in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Output(NamedTuple):
    """What a step gives for a request: a `token` (NONE where it only ended), its log-probability, (id, log-probability)
    of the likeliest, and why the request ended (stop, length, not finite, grammar: it outgrew its limits), or "".

    `stop` is the id that ended it, whose log-probability this then is. `prompt` has, with the first token, what was
    asked for of the prompt's tokens from the second on."""

    number: int
    token: int
    logprob: float
    top: list[tuple[int, float]]
    finish_reason: str
    stop: int = NONE
    prompt: Sequence[TokenLogprob] = ()


@dataclass
class _Running:
    """A request in a slot: how much of its prompt has been read, how many tokens it has got, and the log-probabilities
    of its prompt, whose `parts` are read apart."""

    number: int
    request: Request
    slot: int
    parts: Sequence[Part]
    read: int = 0
    given: int = 0
    prompt: list[TokenLogprob] = field(default_factory=list)
    matcher: Matcher | None = None

    @property
    def unread(self) -> int:
        """Tokens of its prompt that are still to be read."""
        return len(self.request.prompt) - self.read

    @property
    def part(self) -> Part:
        """The part of its prompt that is to be read next."""
        return next(part for part in self.parts if part.end > self.read)

    @property
    def chunk(self) -> int:
        """The size of the next chunk of its prompt; images are read whole."""
        part = self.part
        if part.images is not None:
            return -(-(part.end - self.read) // CHUNKS[1]) * CHUNKS[1]
        return CHUNKS[0] if part.end - self.read >= CHUNKS[0] else CHUNKS[1]

    @property
    def is_small(self) -> bool:
        """Whether it can be read together with others' of that size."""
        return self.chunk == CHUNKS[1] and self.part.images is None and not self.request.prompt_logprobs

    @property
    def next_tokens(self) -> int:
        """Tokens in it."""
        return min(self.chunk, self.part.end - self.read)


@dataclass
class Engine:
    """`model` and its `params`, with `slots` requests at a time, each of up to `length` tokens (0: the model's
    context); `shared_chunks` chunks of prompts are kept for requests that begin alike (0: none)."""

    model: Transformer
    params: Params
    slots: int = 16
    length: int = 0
    shared_chunks: int = 32
    waiting: deque[tuple[int, Request]] = field(default_factory=deque, init=False)
    running: list[_Running] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        cfg = self.model.cfg
        if cfg.has_encoder or not cfg.causal:
            raise ValueError("the engine decodes decoders: this model has an encoder")
        cfg.check_generates()
        if self.model.compute.unroll != 0:
            raise ValueError("the engine keeps a cache of each layer: set compute.unroll=0")
        self.length, self.params = min(self.length or cfg.context, cfg.context), unstack(self.params)
        self.vocab = cfg.vocab
        self._state = _beside(self.params, empty_slots(self.model, self.slots, self.length, self.vocab))
        self._together = is_streamed(cfg, self.params)  # or bits would depend on how many prompts are read
        self._every = np.full((max(self.slots, TOGETHER), -(-self.vocab // 32)), ALL, np.uint32)
        self._free = deque(range(self.slots))
        self._numbers = count()
        self._saved: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        caches = jax.tree.leaves(self._state.cache.layers, is_leaf=lambda a: isinstance(a, TokenCache))
        sharable = all(isinstance(cache, TokenCache) and not cache.ring for cache in caches)
        self.shared_chunks = self.shared_chunks if sharable else 0  # a ring or a state has no places for tokens

    # ---------------------------------------------------------------- what callers do

    def submit(self, request: Request) -> int:
        """The number of a request, which waits for a slot. Raises ValueError for one that cannot be continued."""
        most = request.max_new_tokens
        check_prompts([request.prompt], self.vocab, self.length, most if most > 1 else 0)  # a single one is not read
        ids = [token for token, _ in request.sampling.logit_bias]
        if ids and max(ids) >= self.vocab:
            raise ValueError(f"logit_bias for id {max(ids)}: the vocabulary has {self.vocab}")
        if request.images is not None:
            check_images(request.prompt, request.images, self.model.cfg)
        number = next(self._numbers)
        self.waiting.append((number, request))
        return number

    def cancel(self, number: int) -> bool:
        """Free the request's slot, or its place among the waiting; whether it was still there."""
        for running in self.running:
            if running.number == number:
                self._leave(running)
                return True
        before = len(self.waiting)
        self.waiting = deque(one for one in self.waiting if one[0] != number)
        return len(self.waiting) < before

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self, tokens: int = 1) -> list[Output]:
        """A chunk's worth of tokens of the oldest prompts that are not read yet, and a token for each request whose
        prompt is; up to so many `tokens`, at most STRIDE, where all prompts are."""
        self._admit()
        outputs, most = [], CHUNKS[0]
        while most > 0 and (reading := self._unread()):
            most -= len(reading) * reading[0].chunk
            outputs += self._prefill(reading)
        return outputs + self._decode(tokens)

    def generate(self, requests: Sequence[Request]) -> list[list[Output]]:
        """The outputs of each request, in their order, until all have ended."""
        outputs: dict[int, list[Output]] = {self.submit(request): [] for request in requests}
        while self.busy:
            for output in self.step(STRIDE):
                outputs[output.number].append(output)
        return list(outputs.values())

    def warm_up(self) -> None:
        """Compile every program, whatever requests will ask for, but for images without text between them."""
        short, longest = Request([0], 2), Request([0] * min(CHUNKS[0] + 2, self.length - 1), 1)
        for requests in ([short] * ENOUGH, [longest], [longest]):  # the last finds the beginning of the one before
            self.generate(requests)
        vision = self.model.cfg.vision
        if vision and not vision.prefix and vision.soft_tokens < self.length:
            image = np.zeros((1, vision.image_size, vision.image_size, vision.channels), np.uint8)
            self.generate([Request([vision.image_token] * vision.soft_tokens, 1, images=image)])

    # ---------------------------------------------------------------- a step

    def _admit(self) -> None:
        while self.waiting and self._free:
            number, request = self.waiting.popleft()
            parts = parts_of(request.prompt, request.images, self.model.cfg)
            running = _Running(number, request, self._free.popleft(), parts)
            running.matcher = request.grammar.begin() if request.grammar else None
            options = Options.of(request.sampling, request.top_logprobs > 0, request.processed)
            prompt = np.bincount(np.asarray(request.prompt), minlength=self.vocab).astype(np.int32)[None]
            slot, seed, index = np.int32(running.slot), np.uint32(request.seed), np.int32(request.index)
            bias = _bias(request.sampling, self.vocab)
            self._state = device.begin(self._state, slot, options, bias, prompt, seed, index)
            if not request.prompt_logprobs and request.images is None:  # the former follow from reading it
                self._restore_shared(running)
            self.running.append(running)

    def _unread(self) -> list[_Running]:
        """The oldest whose prompt is to be read; where there are enough, with others whose next chunk is as small."""
        unread = [one for one in self.running if one.unread]
        small = [one for one in unread if one.is_small]
        together = self._together and len(small) >= ENOUGH and unread[0] is small[0]
        return small[:TOGETHER] if together else unread[:1]

    def _prefill(self, reading: list[_Running]) -> list[Output]:
        """The next chunk of each is read; the outputs of those whose prompt then is."""
        (first, *others), size, images = reading, reading[0].chunk, reading[0].part.images
        chunks = _repeated(reading) if others else reading
        ids = [list(one.request.prompt[one.read : one.read + size + 1]) for one in chunks]  # and the one after
        tokens = np.array([row + [0] * (size + 1 - len(row)) for row in ids], np.int32)
        rows, count = _numbers(one.slot for one in chunks), _numbers(one.next_tokens for one in chunks)
        scored = first.request.prompt_logprobs
        arrays = rows, tokens, count, np.bool_(scored), images
        self._state, x, scores = device.prefill(self.model, self.params, self._state, *arrays)
        if scored:
            known = min(first.next_tokens, len(ids[0]) - 1)
            first.prompt += _logprobs(scores, first.request.top_logprobs)[:known]
        for one in reading:
            one.read += one.next_tokens
        if size == CHUNKS[0] and first.request.images is None:  # the same ids may stand for other images
            self._save_shared(first)
        return self._begin([(row, one) for row, one in enumerate(reading) if not one.unread], x)

    def _begin(self, read: list[tuple[int, _Running]], x: jax.Array) -> list[Output]:
        """The first outputs of requests whose last hidden states are these rows of x."""
        if not read:
            return []
        every = _repeated(read)
        rows, of = _numbers(one.slot for _, one in every), _numbers(row for row, _ in every)
        allowed = self._allowed([(i, one) for i, (_, one) in enumerate(every)], TOGETHER)
        self._state, drawn = device.first_tokens(self.model, self.params, self._state, rows, x, of, allowed)
        return self._outputs([(i, one) for i, (_, one) in enumerate(read)], _logprobs(drawn, device.TOP))

    def _decode(self, most: int) -> list[Output]:
        """A token for each request whose prompt is read; up to `most` where none comes in between or needs to be seen
        before the next. What a request that stops has beyond is dropped."""
        ready = [one for one in self.running if one.given]
        if not ready:
            return []
        alone = len(ready) < len(self.running) or any(one.matcher for one in ready)
        count = 1 if alone else min(most, STRIDE, *(one.request.max_new_tokens - one.given for one in ready))
        active = np.zeros(self.slots, bool)
        active[[one.slot for one in ready]] = True
        allowed = self._allowed([(one.slot, one) for one in ready], self.slots)
        arrays = active, allowed, np.int32(count)
        self._state, drawn = device.decode(self.model, self.params, self._state, *arrays)
        drawn, outputs = jax.device_get(drawn), []
        for i in range(count):
            given = _logprobs(Drawn(*(a[i] for a in drawn)), device.TOP)
            outputs += self._outputs([(one.slot, one) for one in ready if one in self.running], given)
        return outputs

    def _allowed(self, rows: list[tuple[int, _Running]], size: int) -> Any:
        """The tokens that grammars allow in these of `size` rows, a bit each, uint32 [size, ceil(V / 32)]; all in
        others."""
        matchers = [(row, one.matcher) for row, one in rows if one.matcher]
        if not matchers:
            return self._every[:size]
        allowed = np.full((size, -(-self.vocab // 32)), ALL, np.uint32)
        for row, matcher in matchers:
            allowed[row] = matcher.allowed()
        return allowed

    def _outputs(self, rows: list[tuple[int, _Running]], given: list[TokenLogprob]) -> list[Output]:
        """The outputs of requests in these rows of what was drawn; those that end leave their slots."""
        outputs = []
        for row, running in rows:
            (token, logprob, top), running.given = given[row], running.given + 1
            end, best = self._end(running, token), top[: running.request.top_logprobs]
            ids = (NONE, token) if token in running.request.stop else (token, NONE)
            prompt = running.prompt if running.given == 1 else ()
            outputs.append(Output(running.number, ids[0], logprob, best, end, ids[1], prompt))
            if end:
                self._leave(running)
        return outputs

    def _end(self, running: _Running, token: int) -> str:
        matcher = running.matcher
        if token == NONE:
            return "grammar" if matcher and matcher.failed else "not finite"
        if token in running.request.stop or (matcher and not matcher.advance(token)):
            return "stop"
        return "length" if running.given == running.request.max_new_tokens else ""

    def _leave(self, running: _Running) -> None:
        self.running.remove(running)
        self._free.append(running.slot)

    # ---------------------------------------------------------------- beginnings that prompts share

    def _save_shared(self, running: _Running) -> None:
        """Keep the chunk that was read last, for prompts that begin as this one does up to there."""
        beginning = tuple(running.request.prompt[: running.read])
        if self.shared_chunks and beginning not in self._saved:
            start = np.int32(running.read - CHUNKS[0])
            self._saved[beginning] = device.save(self._state, np.int32(running.slot), start, CHUNKS[0])
            if len(self._saved) > self.shared_chunks:
                self._saved.popitem(last=False)

    def _restore_shared(self, running: _Running) -> None:
        """Chunks of the prompt that an earlier one had too; the last of a prompt is read, for its logits."""
        prompt = running.request.prompt
        while running.read + CHUNKS[0] < len(prompt):
            beginning = tuple(prompt[: running.read + CHUNKS[0]])
            if beginning not in self._saved:
                return
            self._saved.move_to_end(beginning)
            slot, start = np.int32(running.slot), np.int32(running.read)
            self._state = device.restore(self._state, slot, start, self._saved[beginning])
            running.read += CHUNKS[0]


def _repeated(several: list[Any]) -> list[Any]:
    """TOGETHER of them, for programs of so many rows: what comes again does again what was done."""
    return (several * TOGETHER)[:TOGETHER]


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int32)


def _beside(params: Params, state: Any) -> Any:
    """`state` on the device of the parameters, as all that follows from them will be: else warm-up would compile for
    arrays that JAX may put anywhere, and the first requests once more."""
    devices = jax.tree.leaves(params)[0].devices()
    return jax.device_put(state, *devices) if len(devices) == 1 else state


def _logprobs(drawn: Drawn, most: int) -> list[TokenLogprob]:
    """Of each row, with up to `most` of the likeliest."""
    token, logprob, top, top_logprobs = (a.tolist() for a in jax.device_get(drawn))
    best = [list(zip(*row, strict=True))[:most] for row in zip(top, top_logprobs, strict=True)]
    return [TokenLogprob(*row) for row in zip(token, logprob, best, strict=True)]


def _bias(sampling: Sampling, vocab: int) -> jax.Array:
    """[1, V]: what is added to the logits."""
    bias = np.zeros((1, vocab), np.float32)
    for token, value in sampling.logit_bias:
        bias[0, token] += value
    if sampling.vocab_size:
        bias[0, sampling.vocab_size :] = -np.inf
    return jnp.asarray(bias)
