"""What /metrics tells Prometheus: vLLM's names where they mean the same."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax.monitoring
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
COMPILED = "/jax/core/compile/backend_compile_duration"


class Metrics:
    """Counters of one server, each labelled with the model's name."""

    def __init__(self, model: str):
        self.registry, self._model = CollectorRegistry(), model
        self.prompt_tokens = self._new(Counter, "vllm:prompt_tokens", "Tokens of prompts that were read.")
        self.generation_tokens = self._new(Counter, "vllm:generation_tokens", "Tokens that were generated.")
        self.first_token = self._seconds("vllm:time_to_first_token_seconds", "From arrival to the first token.")
        self.between_tokens = self._seconds("vllm:inter_token_latency_seconds", "From a token to the next one.")
        self.whole = self._seconds("vllm:e2e_request_latency_seconds", "From arrival to the last token.")
        self.queued = self._seconds("vllm:request_queue_time_seconds", "From arrival to a slot.")
        self.request_prompt = self._tokens("vllm:request_prompt_tokens", "Tokens of a request's prompt.")
        self.request_generated = self._tokens("vllm:request_generation_tokens", "Tokens that a request got.")
        self.inspected = self._seconds("inspection_seconds", "From arrival to the page of what is inside.")
        self._compiled = self._new(
            Counter,
            "compiles_after_warmup",
            "Programs that were compiled after the warm-up, but for inspections: none is expected.",
        )
        self._compiling = threading.local()
        self._ended = Counter(
            "vllm:request_success",
            "Requests that ended.",
            ("model_name", "finished_reason"),
            registry=self.registry,
        )

    def _new(self, kind: Any, name: str, about: str, **options: Any) -> Any:
        return kind(name, about, ("model_name",), registry=self.registry, **options).labels(self._model)

    def _seconds(self, name: str, about: str) -> Any:
        return self._new(Histogram, name, about, buckets=SECONDS)

    def _tokens(self, name: str, about: str) -> Any:
        return self._new(Histogram, name, about, buckets=TOKENS)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for its value when it is read."""
        self._new(Gauge, name, about).set_function(value)

    def ended(self, reason: str) -> None:
        """Count a request by how it ended: stop, length, abort, error."""
        self._ended.labels(self._model, reason).inc()

    def embedded(self, tokens: int) -> None:
        """Count a request for vectors of texts with so many tokens."""
        self.prompt_tokens.inc(tokens)
        self.ended("stop")

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """What this thread compiles meanwhile is expected, and not counted."""
        self._compiling.expected = True
        try:
            yield
        finally:
            self._compiling.expected = False

    def watch_compiler(self) -> None:
        """Count what is compiled from here on."""
        jax.monitoring.register_event_duration_secs_listener(self._compilation)

    def unwatch_compiler(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compilation)

    def _compilation(self, event: str, duration_secs: float, **more: Any) -> None:
        if event == COMPILED and not getattr(self._compiling, "expected", False):
            self._compiled.inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
