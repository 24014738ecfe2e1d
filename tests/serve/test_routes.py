"""The routes, against the engine itself: what is asked for reaches it, and what is not known is refused."""

import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest
from starlette.testclient import TestClient

from lm.decode.engine import Request
from lm.decode.sampling import Sampling
from tests.serve import small
from tests.serve.small import BIAS, CONTEXT

PROMPT = "The capital"
GREEDY = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logit_bias": BIAS}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 3, "logit_bias": BIAS}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with small.client() as client:
        yield client


def post(client: TestClient, route: str, **body: Any) -> dict[str, Any]:
    answer = client.post(route, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def complete(client: TestClient, **body: Any) -> dict[str, Any]:
    return post(client, "/v1/completions", **{**GREEDY, **body})


def text_of(client: TestClient, **body: Any) -> str:
    return str(complete(client, **body)["choices"][0]["text"])


def events(client: TestClient, route: str, **body: Any) -> list[Any]:
    """The chunks of a stream, which ends with [DONE] and a blank line."""
    answer = client.post(route, json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def refused(client: TestClient, route: str, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = client.post(route, json=body)
    assert answer.status_code == status, answer.text
    return dict(answer.json()["error"])


def alone(ids: list[int], sampling: Sampling, **options: Any) -> list[int]:
    """What the engine itself gives."""
    (outputs,) = small.engine().generate([Request(ids, 12, sampling, **options)])
    return [output.token for output in outputs]


# -------------------------------------------------------------------- completions


def test_a_completion_is_the_engine_s_with_one_bos(client: TestClient) -> None:
    bias = tuple((int(id), float(value)) for id, value in BIAS.items())
    ids = [256, *PROMPT.encode()]
    expected = bytes(alone(ids, Sampling(0.0, logit_bias=bias, vocab_size=258))).decode()
    answer = complete(client)
    assert answer["choices"][0]["text"] == expected and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 12, "total_tokens": len(ids) + 12}
    assert answer["timings"]["predicted_n"] == 12 and answer["timings"]["prompt_ms"] > 0
    assert answer["object"] == "text_completion" and answer["model"] == "tiny" and answer["id"].startswith("cmpl-")
    assert text_of(client, prompt="<bos>" + PROMPT) == expected  # not a second one
    assert text_of(client, prompt=ids) == text_of(client, prompt=[ids]) == expected
    without = bytes(alone(ids[1:], Sampling(0.0, logit_bias=bias, vocab_size=258))).decode()
    assert text_of(client, prompt=ids[1:]) == without != expected  # ids are as they are
    assert text_of(client, add_special_tokens=False) == without


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.4},
        {"typical_p": 0.2},
        {"repetition_penalty": 1.9},
        {"presence_penalty": 1.7},
        {"frequency_penalty": 1.5},
        {"temperature": 0.3},
        {"seed": 9},
        {"logit_bias": {**BIAS, "65": 3.5}},
    ],
    ids=str,
)
def test_every_option_of_sampling_arrives(client: TestClient, option: dict[str, Any]) -> None:
    asked = {"temperature": 2.0, "seed": 1, "logit_bias": BIAS, **option}
    seed, bias = asked.pop("seed"), asked.pop("logit_bias")
    sampling = Sampling(**asked, logit_bias=tuple((int(i), float(v)) for i, v in bias.items()), vocab_size=258)
    expected = bytes(alone([256, *PROMPT.encode()], sampling, seed=seed)).decode()
    assert text_of(client, **{"temperature": 2.0, "seed": 1, **option}) == expected
    assert text_of(client, temperature=2.0, seed=1) != expected


def test_a_text_goes_on_where_the_prompt_ends(client: TestClient) -> None:
    """Also within a character; a chat's answer is a text of its own."""
    bias = {str(0xA9): 100}
    assert text_of(client, prompt=[256, 0xC3], logit_bias=bias, max_tokens=1) == "é"
    chat = post(client, "/v1/chat/completions", **{**CHAT, "logit_bias": bias, "max_tokens": 1})
    assert chat["choices"][0]["message"]["content"] == "\ufffd"


def test_prompts_and_choices_have_indices(client: TestClient) -> None:
    """In the order of the prompts; a text does not depend on what is asked for beside it."""
    asked = dict(temperature=1.5, seed=5, n=3)
    both = complete(client, prompt=["one", "two"], **asked)["choices"]
    assert [choice["index"] for choice in both] == list(range(6))
    texts = [choice["text"] for choice in both]
    assert len(set(texts)) == 6
    assert [choice["text"] for choice in complete(client, prompt="two", **asked)["choices"]] == texts[3:]
    assert text_of(client, prompt="two", temperature=1.5, seed=5) == texts[3]
    assert text_of(client, prompt="two", temperature=1.5) != text_of(client, prompt="two", temperature=1.5)


def test_a_stop_string_across_tokens(client: TestClient) -> None:
    """Ends the text before it, streamed or not, and gives the slot back; the usage counts its tokens."""
    text = text_of(client, max_tokens=60, temperature=1.0, seed=4)
    at = next(i for i in range(5, 40) if text.index(text[i : i + 3]) == i)
    asked = dict(max_tokens=60, temperature=1.0, seed=4, stop=[text[at : at + 3], "never this"])
    answer = complete(client, **asked)
    assert answer["choices"][0]["text"] == text[:at] and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == at + 3
    chunks = events(client, "/v1/completions", **{**GREEDY, **asked})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[:at]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == answer["usage"]


def test_ids_that_end_a_text(client: TestClient) -> None:
    """The model's own unless ignored, those asked for, and control ids by their names; with log-probabilities each has
    its entry."""
    bos, eos = ({**BIAS, id: 100} for id in ("256", "257"))
    for asked in (
        dict(logit_bias=eos),
        dict(logit_bias=bos, stop=["<bos>"]),
        dict(logit_bias=bos, stop_token_ids=[256]),
    ):
        (ended,) = complete(client, **asked, logprobs=1)["choices"]
        assert ended["text"] == "" and ended["finish_reason"] == "stop"
        assert ended["logprobs"]["tokens"] == ["<eos>" if asked["logit_bias"] is eos else "<bos>"]
    for asked in (dict(logit_bias=eos, ignore_eos=True), dict(logit_bias=bos)):
        assert complete(client, **asked)["choices"][0]["finish_reason"] == "length"
    messages = post(client, "/v1/chat/completions", **{**CHAT, "logit_bias": eos}, logprobs=True)
    assert messages["choices"][0]["logprobs"]["content"] == [] and messages["usage"]["completion_tokens"] == 1


def test_echo_with_logprobabilities_is_what_evaluation_reads(client: TestClient) -> None:
    """The prompt's, of which the first is null, and exactly one more; the greedy one is the maximum, the same float."""
    ids = [[256, *b"ab cd"], [256, *b"e"]]
    answer = complete(client, prompt=ids, max_tokens=1, echo=True, logprobs=1, seed=1234, logit_bias={})
    first, second = (choice["logprobs"] for choice in answer["choices"])
    assert len(first["token_logprobs"]) == 7 and len(second["token_logprobs"]) == 3
    assert first["token_logprobs"][0] is None and first["top_logprobs"][0] is None
    assert first["tokens"][:4] == ["<bos>", "a", "b", " "] and first["text_offset"][:4] == [0, 0, 1, 2]
    assert answer["choices"][0]["text"].startswith("ab cd")
    expected = np.asarray(jax.nn.log_softmax(small.model().logits([ids[0]])[0]))
    for i, id in enumerate(ids[0][1:]):
        assert first["token_logprobs"][i + 1] == pytest.approx(expected[i, id], rel=1e-5)
    for row in (first, second):
        assert row["token_logprobs"][-1] == max(row["top_logprobs"][-1].values())
        pairs = zip(row["token_logprobs"][1:], row["top_logprobs"][1:], strict=True)
        assert all(value in top.values() for value, top in pairs)


def test_logprobabilities_before_and_after_the_filters(client: TestClient) -> None:
    asked = dict(temperature=1.0, top_k=1, logprobs=2, max_tokens=1)
    raw = complete(client, **asked)["choices"][0]["logprobs"]["token_logprobs"][0]
    assert raw < 0
    top = complete(client, **{**asked, "top_k": 2}, logprobs_mode="processed_logprobs")["choices"][0]["logprobs"]
    assert sum(math.exp(v) for v in top["top_logprobs"][0].values()) == pytest.approx(1, abs=1e-5)


def test_a_stream_is_the_answer_in_parts(client: TestClient) -> None:
    asked = dict(n=2, temperature=1.5, seed=2, logprobs=1, echo=True)
    whole = complete(client, **asked)
    chunks = events(client, "/v1/completions", **{**GREEDY, **asked}, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1]) and len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for c in own for value in c["logprobs"][name]] == values
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["length"]


# -------------------------------------------------------------------- chat


def test_a_chat_is_its_template_with_one_bos(client: TestClient) -> None:
    answer = post(client, "/v1/chat/completions", **CHAT, logprobs=True, top_logprobs=2)
    rendered = "<bos>user: Hi\nassistant: "
    same = complete(client, **{**CHAT, "prompt": rendered, "temperature": 1.0, "messages": None})
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": same["choices"][0]["text"], "refusal": None}
    assert answer["usage"] == same["usage"] and answer["usage"]["prompt_tokens"] == len(rendered) - 4
    content = choice["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)  # ids past the tokenizer's are not among them
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    assert content[0]["bytes"] == list(content[0]["token"].encode())
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    again = post(client, "/v1/chat/completions", **{**CHAT, "messages": [{"role": "user", "content": parts}]})
    assert again["choices"][0]["message"] == choice["message"]


def test_a_chat_s_stream(client: TestClient) -> None:
    whole = post(client, "/v1/chat/completions", **CHAT)["choices"][0]["message"]["content"]
    chunks = events(client, "/v1/chat/completions", **CHAT)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "length" and chunks[-1]["usage"]["completion_tokens"] == 8
    assert all({"id", "created", "model", "object"} <= set(chunk) for chunk in chunks)


NAMED = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": NAMED}}


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"response_format": FORMAT}, r'\{\s*"n"\s*:\s*\d\s*(,\s*".*|\})'),
        ({"response_format": {"type": "json_object"}}, r"\{.*"),
        (
            {"structured_outputs": {"json": json.dumps({**NAMED, "additionalProperties": False})}},
            r'\{\s*"n"\s*:\s*\d\s*\}',
        ),
        ({"structured_outputs": {"regex": "[ab]{3}c"}}, "[ab]{3}c"),
        ({"structured_outputs": {"choice": ["cat", "dog"]}}, "cat|dog"),
    ],
    ids=["json_schema", "json_object", "json", "regex", "choice"],
)
def test_texts_are_those_of_the_grammar(client: TestClient, asked: dict[str, Any], pattern: str) -> None:
    body = {**CHAT, "max_tokens": 60, "logit_bias": {}, **asked}
    choice = post(client, "/v1/chat/completions", **body)["choices"][0]
    assert re.fullmatch(pattern, choice["message"]["content"], re.S), choice
    assert choice["finish_reason"] in (("stop", "length") if "response_format" in asked else ("stop",))
    streamed = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    parts = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts) == choice["message"]["content"]


def test_a_chat_goes_on_as_far_as_the_context(client: TestClient) -> None:
    answer = post(client, "/v1/chat/completions", **{**CHAT, "max_tokens": None})
    assert answer["usage"]["total_tokens"] == CONTEXT


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": ""}, None, None),  # bos alone is a prompt
        ({"prompt": []}, "prompt", "expected a text"),
        ({"prompt": [[]]}, "prompt", "no tokens"),
        ({"prompt": ["a", [1]]}, "prompt", "one kind"),
        ({"prompt": [1, 999]}, "prompt", "999: expected 0 to 257"),
        ({"prompt": 3}, "prompt", "is a number"),
        ({"prompt": "x" * CONTEXT}, "prompt", "leaves no room"),
        ({"prompt": "\ud800"}, "prompt", "lone surrogate"),
        ({"max_tokens": CONTEXT}, "max_tokens", "do not fit the context"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens=0: expected 1"),
        ({"max_tokens": 1.5}, "max_tokens", "a whole number"),
        ({"max_tokens": True}, "max_tokens", "is a boolean"),
        ({"temperature": -1}, "temperature", "temperature=-1"),
        ({"temperature": "hot"}, "temperature", "is a string"),
        ({"temperature": 10**400}, "temperature", "expected a finite number"),
        ({"\ud800": 1}, "\\ud800", "unknown field \\ud800"),
        ({"top_p": 0}, "top_p", "top_p=0"),
        ({"top_p": 1e999}, "top_p", "JSON|finite"),
        ({"n": 0}, "n", "expected 1 to 128"),
        ({"n": 128, "prompt": ["a", "b", "c"]}, "n", "at most 260"),
        ({"stop": [3]}, "stop", "strings"),
        ({"stop": ""}, "stop", "strings"),
        ({"stop": {"a": 1}}, "stop", "is an object"),
        ({"seed": -1}, "seed", "seed=-1"),
        ({"logprobs": 21}, "logprobs", "expected 0 to 20"),
        ({"logprobs": True}, "logprobs", "is a boolean"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "999"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"logprobs_mode": "x"}, "logprobs_mode", "raw_logprobs or"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"best_of": 1}, None, None),
        ({"suffix": "."}, "suffix", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids", "token ids"),
        ({"user": "me", "echo": None}, None, None),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_a_completion_is_served_or_refused_by_name(
    client: TestClient, body: dict[str, Any], param: str | None, message: str | None
) -> None:
    text = json.dumps({"prompt": "a", "max_tokens": 1, **body})
    answer = client.post("/v1/completions", content=text, headers={"content-type": "application/json"})
    if message is None:
        assert answer.status_code == 200, answer.text
        return
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert any(part in error["message"] for part in message.split("|")), error
    assert error["param"] in (param, None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": "hi"}, "is a string"),
        ({"messages": [{"role": "user"}]}, "a role and a content"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text alone"),
        ({"tools": [{"type": "function"}]}, "tools="),
        (
            {"response_format": {"type": "grammar"}},
            "expected text, json_object, json_schema",
        ),
        ({"response_format": {"type": "json_schema"}}, "schema: expected a JSON schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            'Unimplemented keys: ["not"]',
        ),
        ({"structured_outputs": {"regex": "(a"}}, "unclosed group"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos and structured_outputs"),
        ({"structured_outputs": {"regex": r"[^\s\S]"}}, "the grammar has no text"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "expected one of json, json_object, regex, choice"),
        ({"structured_outputs": {"choice": []}}, "expected at least one text"),
        ({"top_logprobs": 2}, "set logprobs to true"),
        ({"prompt": "a"}, "unknown field prompt"),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
    ],
    ids=str,
)
def test_a_chat_is_refused_by_name(client: TestClient, body: dict[str, Any], message: str) -> None:
    assert message in refused(client, "/v1/chat/completions", **{**CHAT, **body})["message"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 200_000, 400, "not JSON"),
        (b"[]", 400, "is a list"),
        (b'{"temperature": NaN}', 400, "NaN is no number"),
        (b'{"n": 1, "n": 2}', 400, "twice"),
        (b"\xff", 400, "not JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_json_object(client: TestClient, content: bytes, status: int, message: str) -> None:
    answer = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_other_refusals(client: TestClient) -> None:
    assert refused(client, "/v1/completions", 404, prompt="a", model="gpt-9")["code"] == "model_not_found"
    assert client.post("/v1/completions", content=b"{}").status_code == 415
    assert client.get("/v1/completions").status_code == 405
    unknown = client.post("/v1/images", json={})
    assert unknown.status_code == 404 and "/v1/images" in unknown.json()["error"]["message"]


# -------------------------------------------------------------------- the other routes


def test_tokens(client: TestClient) -> None:
    answer = post(client, "/tokenize", prompt="hé</s><eos>", return_token_strs=True)
    assert answer["tokens"] == [256, *"hé</s>".encode(), 257] and answer["count"] == 9
    assert answer["token_strs"][:3] == ["<bos>", "h", "<0xC3>"] and answer["max_model_len"] == CONTEXT
    assert post(client, "/tokenize", prompt="<eos>", add_special_tokens=False)["tokens"] == [257]
    chat = post(client, "/tokenize", messages=CHAT["messages"], add_generation_prompt=False)
    assert chat["tokens"] == [256, *b"user: Hi\n"]
    assert post(client, "/detokenize", tokens=[256, *"hé".encode()]) == {"prompt": "hé"}
    assert "999" in refused(client, "/detokenize", tokens=[999])["message"]
    assert "either" in refused(client, "/tokenize")["message"]
    info = client.get("/tokenizer_info").json()
    assert info["bos_token"] == "<bos>" and info["eos_token"] == "<eos>" and info["pad_token"] is None
    assert info["chat_template"] == small.TEMPLATE


def test_about_the_server(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/tiny").json() and model["id"] == "tiny"
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}
    props = client.get("/props").json()
    assert props["total_slots"] == 4 and props["default_generation_settings"]["n_ctx"] == CONTEXT


def test_metrics_count_and_nothing_is_compiled() -> None:
    """Whatever is asked for, in any company."""
    own = small.engine()
    own.warm_up()  # tests/conftest.py may have let go of what another file had compiled
    with small.client(own=own) as client:
        page = client.get("/metrics").text
        assert 'vllm:prompt_tokens_total{model_name="tiny"} 0.0' in page
        asked = [
            dict(prompt="x" * length, logprobs=(None, 2)[i % 2], echo=i % 3 == 0, n=1 + i % 3, min_p=0.1 * (i % 4))
            for i, length in enumerate([1, 31, 40, 256, 270, 280, 280, 5])
        ]
        with ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda body: complete(client, **body, temperature=1.0, seed=1), asked))
        page = client.get("/metrics").text
        values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        label = '{model_name="tiny"}'
        assert values[f"compiles_after_warmup_total{label}"] == "0.0"
        assert float(values[f"vllm:generation_tokens_total{label}"]) == sum(
            t["usage"]["completion_tokens"] for t in texts
        )
        assert float(values[f"vllm:num_requests_running{label}"]) == 0
        assert float(values['vllm:request_success_total{finished_reason="length",model_name="tiny"}']) == sum(
            body["n"] for body in asked
        )
        assert f"vllm:time_to_first_token_seconds_count{label}" in values
        assert f"vllm:kv_cache_usage_perc{label}" in values
        for body, together in zip(asked, texts, strict=True):
            assert complete(client, **body, temperature=1.0, seed=1)["choices"] == together["choices"]
