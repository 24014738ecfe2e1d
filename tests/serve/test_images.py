"""Images in conversations: `lm chat`'s /image, OpenAI's image_url, the server's page."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from lm.data.images import read_image
from lm.decode.engine import Engine
from lm.decode.sampling import Sampling
from lm.model.config import Vision
from lm.model.families import llama, siglip
from lm.model.parts import RMSNorm
from lm.model.transformer import Transformer
from lm.pretrained.model import Pretrained
from lm.serve.call import Limits
from lm.serve.conversation import Conversation, engine_of
from lm.serve.start import USUAL, application
from lm.text.image_tokens import ImageTokens, render_chat
from lm.text.tokenizer import ByteTokenizer
from tests.browser import browser, needs_chromium
from tests.model.reference import SIMPLE, lively
from tests.serve import small
from tests.serve.small import BIAS
from tests.serve.test_conversation import asked
from tests.serve.test_page import listening, say

SIZE, IMAGE, BEGIN, END = 8, 260, 258, 259
PARTS = (  # as Gemma 3's
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p['type'] == 'image' %}<begin>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
GREEDY = Sampling(0.0, logit_bias=tuple((int(id), float(value)) for id, value in BIAS.items()))
ASKED = "What is this?"


@cache
def model(template: str = PARTS) -> Pretrained:
    """Of bytes, with a vision tower; its template knows images, or texts alone."""
    tower = siglip(layers=1, width=8, heads=2, mlp=12, patches=16)
    norm, tokens = RMSNorm(), dict(image_token=IMAGE, begin_token=BEGIN, end_token=END, separator="\n\n")
    vision = Vision(tower=tower, image_size=SIZE, patch_size=2, pool=2, projector_norm=norm, **tokens)  # type: ignore
    cfg = llama(vocab=261, layers=2, width=16, heads=4, kv_heads=2, mlp=20, context=300, vision=vision)
    params = {**lively(cfg)}
    tokenizer = ByteTokenizer()
    tokenizer.controls = {**tokenizer.controls, BEGIN: "<begin>"}
    tokenizer.chat_template = template
    return Pretrained(cfg, params, tokenizer, Transformer(cfg, replace(SIMPLE, unroll=0)))


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def part(file: bytes | str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": file if isinstance(file, str) else url(file), **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@contextmanager
def client(template: str = PARTS, limits: Limits = USUAL) -> Iterator[TestClient]:
    own = model(template)
    with TestClient(application(own, "tiny", Engine(own.model, own.params, 2), limits)) as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[TestClient]:
    with client() as found:
        yield found


def chat(server: TestClient, *content: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": list(content)}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, "logit_bias": BIAS, **more}
    return server.post("/v1/chat/completions", json=body)


def said(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def ids_of(*parts: str) -> list[int]:
    """The ids of texts with an image between each and the next."""
    image = [BEGIN, *[IMAGE] * 4, END]
    first, *rest = parts
    return [256, *first.encode(), *(id for one in rest for id in (*image, *one.encode()))]


def test_an_image_url_is_the_image(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the engine as `generate` would have it, and changes what is said; larger ones are squashed."""
    seen, large = asked(monkeypatch), picture(1, 20)
    first = chat(server, part(png(large)), text(ASKED))
    assert seen[0].prompt == ids_of("user: \n\n", f"\n\n{ASKED}\nassistant: ")
    assert seen[0].images is not None and np.array_equal(seen[0].images[0], read_image(large, SIZE))
    assert first.json()["usage"]["prompt_tokens"] == len(seen[0].prompt)
    assert said(chat(server, part(png(large)), text(ASKED))) == said(first)
    assert said(chat(server, part(png(picture(2))), text(ASKED))) != said(first)
    own = model()
    stream = own.stream_ids([seen[0].prompt], 8, replace(GREEDY, vocab_size=258), images=seen[0].images[None])
    (ids,) = [[id for chunk in stream for id in chunk[0]]]
    assert said(first) == bytes(ids).decode()


def test_several_images_stand_where_they_are_sent(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked(monkeypatch)
    chat(server, text("a"), part(png(picture(1)), detail="auto"), text("b"), part(png(picture(2))))
    assert seen[0].prompt == ids_of("user: a\n\n", "\n\nb\n\n", "\n\n\nassistant: ")
    assert seen[0].images is not None and np.array_equal(seen[0].images, [picture(1), picture(2)])
    chat(server, text("a"), text("b"))
    assert seen[1].prompt == ids_of("user: ab\nassistant: ") and seen[1].images is None


def test_a_template_of_texts_gets_marks() -> None:
    with client(small.TEMPLATE) as server:
        messages = [{"role": "user", "content": [part(png(picture(1))), text(ASKED)]}]
        prompt = server.post("/apply-template", json={"messages": messages}).json()["prompt"]
        assert prompt.endswith(f"user: <begin>{ASKED}\nassistant: ")
        found = server.post("/tokenize", json={"messages": messages}).json()
    assert found["tokens"] == ids_of("user: \n\n", f"\n\n{ASKED}\nassistant: ") and found["count"] == len(
        found["tokens"]
    )
    plain, parts = ImageTokens(IMAGE, 4), [{"role": "user", "content": [{"type": "image"}, text("a")]}]
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render_chat(tokenizer, parts, plain.mark(tokenizer)) == "<image>a"
    assert plain.encode_rendered("<image>a", 1, tokenizer) == [256, *[IMAGE] * 4, ord("a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([part("https://example.org/cat.png")], "begins with 'https://example.org/': this server fetches nothing"),
        ([part("https://example.org/a;base64,AAAA")], "'https://example.org/': this server fetches nothing"),
        ([part("data:image/png,abc")], "this server fetches nothing, expected the image itself, as data:image/png"),
        ([part("data:image/png;base64,a?b")], "url is no base64"),
        ([part(b"no image")], "the image is no image that can be read"),
        ([part(png(picture(1)), detail="high")], "detail=high: images have one size here"),
        ([part(png(picture(1)), size=3)], r"unknown field messages[0].content[0].image_url.size"),
        ([{"type": "image_url", "image_url": "data:"}], "image_url is a string: expected an object"),
        (
            [{"type": "input_audio"}],
            "[0] is a part of another kind: expected a text, or an image_url",
        ),
        ([part(png(picture(1))), text("<begin>")], "1 images, and 2 times <begin> in the conversation"),
        ([part(b"")] * 75, "leaves no room in the context of 300"),
    ],
)
def test_what_is_no_image_is_refused(server: TestClient, content: list[Any], message: str) -> None:
    answer = chat(server, *content, max_tokens=1)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text
    assert answer.json()["error"]["param"].startswith(("messages", "prompt"))


def test_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    with client(limits=Limits(body_bytes=900)) as server:
        assert chat(server, part(png(picture(1, 40))), text(ASKED)).status_code == 413
    monkeypatch.setattr("lm.data.images.MOST_PIXELS", 99)
    with client() as server:
        answer = chat(server, part(png(picture(1, 10))), text(ASKED))
        assert answer.status_code == 400 and "too many pixels: expected at most 99" in answer.text


def test_a_model_without_vision_refuses() -> None:
    with small.client() as server:
        answer = chat(server, part(png(picture(1))), text(ASKED))
        assert answer.status_code == 400 and "that is no text: this model reads text alone" in answer.text
        assert server.get("/props").json()["modalities"] == {"vision": False}
    talk = Conversation(small.model(), engine_of(small.model(), 1))
    with pytest.raises(ValueError, match="this model reads text alone"):
        talk.command("/image cat.png")


def test_a_conversation_about_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, own = asked(monkeypatch), model()
    for i in (1, 2):
        (tmp_path / f"{i}.png").write_bytes(png(picture(i)))
    talk = Conversation(own, engine_of(own, 1), GREEDY, max_new_tokens=5)
    assert talk.command(f"/image {tmp_path / '1.png'}").endswith("1.png goes with the next message")
    first = "".join(talk.reply("a"))
    assert seen[0].prompt == ids_of("user: \n\n", "\n\na\nassistant: ")
    "".join(talk.reply("b"))
    assert seen[1].prompt == ids_of("user: \n\n", f"\n\na\nassistant: {first}\nuser: b\nassistant: ")
    assert seen[1].images is not None and np.array_equal(seen[1].images, [picture(1)])
    talk.command(f"/image {tmp_path / '2.png'}")
    with pytest.raises(ValueError, match="/reset begins a new one"):
        list(talk.reply("y" * 300))
    list(talk.reply("c"))  # the image still goes with the next message
    assert seen[2].images is not None and np.array_equal(seen[2].images, [picture(1), picture(2)])
    talk.command(f"/save {tmp_path / 'talk.jsonl'}")
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert saved[0]["content"] == [{"type": "image", "path": str(tmp_path / "1.png")}, text("a")]
    talk.command("/reset")
    list(talk.reply("d"))
    assert seen[3].images is None
    for line, message in (("/image", "expected the name of a file"), (f"/image {tmp_path / 'no.png'}", "no such file")):
        with pytest.raises(ValueError, match=message):
            talk.command(line)


def test_a_model_without_a_template_reads_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, own = asked(monkeypatch), model("")
    (tmp_path / "1.png").write_bytes(png(picture(1)))
    talk = Conversation(own, engine_of(own, 1), GREEDY, max_new_tokens=2)
    talk.command(f"/image {tmp_path / '1.png'}")
    list(talk.reply("a"))
    assert seen[0].prompt == ids_of("\n\n", "\n\na")


@needs_chromium
def test_an_image_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown with its message, goes with it, and stays in the conversation."""
    seen, own = asked(monkeypatch), model()
    for i in (1, 2):
        (tmp_path / f"{i}.png").write_bytes(png(picture(i)))
    app = application(own, "sees", Engine(own.model, own.params, 2))
    with listening(app) as address, browser(tmp_path) as page:
        page.open(address, 400)
        page.until("document.documentElement.dataset.ready")
        assert page.run("return !document.getElementById('image').hidden")
        page.run("document.getElementById('temperature').value = 0; document.getElementById('max_tokens').value = 4")
        node = page.ask("DOM.querySelector", nodeId=page.ask("DOM.getDocument")["root"]["nodeId"], selector="#file")
        page.ask("DOM.setFileInputFiles", files=[str(tmp_path / "1.png"), str(tmp_path / "2.png")], **node)
        page.until("document.querySelectorAll('#images img').length === 2")
        page.run("document.querySelector('#images img').click()")  # takes the first back
        say(page, ASKED)
        page.until("document.getElementById('stop').disabled && document.querySelector('.turn.assistant p')")
        assert page.run("return document.querySelector('.turn.user img').naturalWidth") == SIZE
        assert page.run("return document.querySelectorAll('#images img, #log button').length") == 0
        assert page.text("#fault") == "" and page.overflow() <= 0
        say(page, "And now?")
        page.until("document.querySelectorAll('.turn.assistant p').length === 2")
    for request in seen:
        assert request.images is not None and np.array_equal(request.images, [picture(2)])
    assert len(seen) == 2 and seen[0].prompt == ids_of("user: \n\n", f"\n\n{ASKED}\nassistant: ")
