"""What `lm inspect` shows of models of every kind; its page, in Chromium where there is one."""

import json
import re
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lm.machine.hardware
from launch.__main__ import main
from lm.model.families import bert, scorer, t5
from lm.pretrained import Pretrained
from lm.pretrained.inside import Look, WhatIf, html, inside, plain
from tests.browser import CHROMIUM, needs_chromium
from tests.pretrained.test_model import SIZES, WRITER, ready

READER = replace(ready(bert(**SIZES | dict(vocab=259))), markers={"[MASK]": 258})
T5 = ready(t5(**SIZES | dict(head_dim=4)))
TEXT = 'a<b> & "c"</script><script>document.title="ran"</script>'
BOS, EOS = 256, 257


def chances(model: Pretrained, *ids: Any) -> np.ndarray:
    """The probabilities of all places."""
    return np.asarray(jax.nn.softmax(model.logits(*ids)[0]))


def test_a_decoder_says_what_comes_next() -> None:
    data, (one,) = inside(WRITER, "ab c", "c ab", what_if=WhatIf(["1.0"]))
    ids = [BOS, *b"ab c"]
    known = chances(WRITER, [ids])
    assert data["texts"] == {"text": ids} and data["main"] == "text"
    assert data["order"]["moved_to"] == [0, 3, 4, 1, 2] and not data["order"]["own"]
    out = data["output"]
    assert out["places"] == [0, 1, 2, 3, 4] == out["lens"]["places"]
    np.testing.assert_allclose(out["followed"][:4], known[range(4), ids[1:]], atol=1e-4)
    assert [row[0][0] for row in out["best"]] == known.argmax(-1).tolist()
    ids_of = [[[id for id, _ in row[:3]] for row in rows] for rows in (out["lens"]["best"][-1], out["best"])]
    assert ids_of[0] == ids_of[1] and len(out["lens"]["best"]) == WRITER.config.layers
    assert one.kept.keys.shape == (2, 2, 5, 5) and one.sinks == [0]
    assert data["pieces"][97] == "a" and data["pieces"][BOS] == "<bos>"
    (changed,) = data["what_if"]
    assert changed["before"][0][:2] == out["best"][4][0] and changed["divergence"] > 0
    assert {id for id, _, _ in (*changed["before"], *changed["after"])} <= set(data["pieces"])
    json.dumps(plain(data, [one]))


def test_an_encoder_predicts_what_is_masked() -> None:
    data, (one,) = inside(READER, "a[MASK]cd")
    ids = data["texts"]["text"]
    (place,) = data["output"]["places"]
    assert ids[place] == 258 and data["pieces"][258] == "[MASK]"
    assert data["output"]["best"][0][0][0] == chances(READER, [ids])[place].argmax()
    assert one.title == "attention" and np.asarray(one.kept.weights)[:, :, 1].any()
    nothing, _ = inside(READER, "acd")
    assert nothing["output"]["places"] == []
    assert "An encoder predicts no next token" in html("bert", nothing, [])


def test_sinks_are_the_first_token_and_in_both_directions_an_end() -> None:
    for model, text, sinks in (
        (READER, "ac<eos>", [0, 3]),
        (READER, "ac[MASK]", [0]),
        (READER, "ac", [0]),
        (WRITER, "ac<eos>", [0]),
    ):
        assert Look(model, text).sinks == {"": sinks}
    assert Look(T5, "ac<eos>", "a").sinks == {"encoder_": [0, 3], "": [0]}


def test_an_encoder_decoder_reads_and_writes() -> None:
    data, attentions = inside(T5, "abc", output="de")
    read, said = data["texts"]["text"], data["texts"]["output"]
    assert read == T5.encode("abc") and said == [T5.decoder_start, *b"de"]
    assert [(a.title, a.queries, a.keys) for a in attentions] == [
        ("encoder", "text", "text"),
        ("decoder", "output", "output"),
        ("cross-attention", "output", "text"),
    ]
    assert attentions[2].kept.keys.shape[:3] == (2, 2, len(said))
    known = chances(T5, [read], None, [said])
    assert [row[0][0] for row in data["output"]["best"]] == known.argmax(-1).tolist()
    assert [part["what"] for part in data["moved"]["output"]] == ["attention", "cross-attention", "feed-forward"]
    assert set(data["neighbours"]) == {*read, *said}


@pytest.mark.slow
def test_an_encoder_decoder_s_own_output_and_heads() -> None:
    own, _ = inside(T5, "abc", what_if=WhatIf(["0.1", "cross.1.0", "encoder.0.0"]))
    read = own["texts"]["text"]
    written = [id for (new,) in T5.stream_ids([read], 32) for id in new]
    assert own["texts"]["output"] == [T5.decoder_start, *written] and len(own["what_if"]) == 3


def test_another_text_is_patched_in() -> None:
    data, _ = inside(WRITER, "abcd", what_if=WhatIf(other="abce"))
    (one,) = data["what_if"]
    assert np.shape(one["patch"]["tokens"]) == (2, 5) and np.shape(one["patch"]["heads"]) == (2, 2)
    assert one["patch"]["tokens"][1][4] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.array(one["patch"]["tokens"])[:, :4], np.eye(2, 4) * 0, atol=10)
    assert one["after"][0][0] == chances(WRITER, [[BOS, *b"abce"]])[-1].argmax()


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (WRITER, ["--text", ""], "--text is empty"),
        (WRITER, ["--text", "a" * 48], "--text has 49 tokens: expected 1 to 48, the model's context"),
        (replace(WRITER, tokenizer=None), ["--text", "a"], "this model came without a tokenizer"),
        (WRITER, ["--text", "a", "--zero", "1"], "head '1': expected layer.head, as in 3.5"),
        (WRITER, ["--text", "a", "--zero", "2.0"], "head '2.0': this model has layers 0 to 1"),
        (WRITER, ["--text", "a", "--zero", "1.2"], "head '1.2': layer 1 has heads 0 to 1"),
        (WRITER, ["--text", "a", "--zero", "cross.1.1"], "head 'cross.1.1': this model has no encoder"),
        (WRITER, ["--text", "a", "--output", "b"], "--output is what an encoder-decoder writes"),
        (WRITER, ["--text", "a b", "--other-order", "b c"], "the other order has 'c', where a word of the text is due"),
        (
            WRITER,
            ["--text", "ab", "--patch-from", "a"],
            "--patch-from has 2 tokens and --text 3: patching needs as many",
        ),
        (
            READER,
            ["--text", "ab", "--zero", "0.0"],
            "this model predicts no next token here; of an encoder, put a mask",
        ),
        (T5, ["--text", "ab", "--output", "a", "--patch-from", "ac"], "--patch-from is for models of one text"),
        (WRITER, ["--text", "a", "--out", "/nowhere/a.html"], "--out /nowhere/a.html: there is no folder /nowhere"),
        (ready(scorer(WRITER.config)), ["--text", "a", "--zero", "0.0"], "this model predicts no next token here"),
    ],
)
def test_bad_input_is_one_line(
    model: Pretrained,
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(monkeypatch, model)
    assert main(["inspect", "m", *options]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def serve(monkeypatch: pytest.MonkeyPatch, model: Pretrained) -> None:
    """`lm inspect` of this model."""
    monkeypatch.setattr("launch.serve.load", lambda *args: model)
    for name in ("prepare", "use_compilation_cache", "set_cpu_devices"):
        monkeypatch.setattr(lm.machine.hardware, name, lambda *args: None)


def test_the_verb_writes_the_page_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(monkeypatch, WRITER)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "some/model", "--text", "ab", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"]["text"] == [BOS, *b"ab"] and len(found["attention"][0]["pattern"][1][1]) == 3
    assert not list(tmp_path.iterdir())
    assert main(["inspect", "some/model", "--text", "ab"]) == 0
    assert re.fullmatch(r"inspect\.html: 3 tokens, \d+\.\dkB\n", capsys.readouterr().out)
    text = (tmp_path / "inspect.html").read_text()
    assert "<h1>model</h1>" in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


# ---------------------------------------------------------------- in a browser

DRIVER = """<pre id="found"></pre><script>
const wait = setInterval(() => {
  if (!document.documentElement.dataset.ready) return;
  clearInterval(wait);
  const key = (name, shiftKey) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key: name, shiftKey: !!shiftKey, bubbles: true }));
  const place = () => ["at-t", "at-l", "at-h"].map(text).join(" · ");
  const text = id => document.getElementById(id).textContent;
  const overflow = () => document.documentElement.scrollWidth - innerWidth;
  document.getElementById("found").textContent = JSON.stringify((() => { %s })());
}, 20);
</script>"""


def browse(page: str, script: str, folder: Path, width: int = 1280, hash: str = "") -> Any:
    """What `script` returns of a page, opened at `hash`."""
    file = folder / "page.html"
    file.write_text(page.replace("</body>", DRIVER.replace("%s", script) + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    size = [f"--window-size={width},900", "--virtual-time-budget=8000", "--dump-dom"]
    run = subprocess.run([CHROMIUM, *options, *size, file.as_uri() + hash], capture_output=True, text=True, timeout=120)
    found = run.stdout.partition('<pre id="found">')[2].partition("</pre>")[0]
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        found = found.replace(entity, sign)
    return json.loads(found)


@cache
def page_of(which: str) -> str:
    model = {"decoder": WRITER, "encoder": READER, "both": T5}[which]
    text = {"decoder": TEXT[:40], "encoder": "a[MASK]cd", "both": "abc"}[which]
    model = replace(model, config=replace(model.config, context=96), model=replace(model.model))
    data, attentions = inside(model, text, output="de" if which == "both" else "")
    return html('<b onclick="x">&amp;</script>', data, attentions)


@needs_chromium
def test_markup_is_shown_and_never_run(tmp_path: Path) -> None:
    script = """const second = document.querySelectorAll("#spoken .tok")[1];
      second.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      return [document.title, document.querySelector("h1").textContent,
      text("tokens").replace(/\\d{2,3}/g, ""),
      document.querySelectorAll("b[onclick]").length, document.querySelectorAll("script").length, overflow(),
      text("tip"), document.getElementById("tip").hidden]"""
    title, heading, tokens, bold, scripts, overflow, tip, hidden = browse(page_of("decoder"), script, tmp_path)
    assert title == 'Inside <b onclick="x">&amp;</script>' and heading == '<b onclick="x">&amp;</script>'
    assert tokens == "<bos>" + TEXT[:40].replace(" ", "·")
    assert bold == 0 and scripts == 3 and overflow <= 0
    assert tip.startswith("a ") and "% here; likeliest" in tip and not hidden


@needs_chromium
def test_keys_choose_token_layer_and_head(tmp_path: Path) -> None:
    script = """const seen = [place()];
      document.getElementById("layers").focus();
      for (let i = 0; i < 99; i++) { key("ArrowLeft"); key("ArrowUp"); key("ArrowLeft", true); }
      seen.push(place());
      for (const how of [["ArrowRight"], ["ArrowDown"], ["ArrowRight", true]]) { key(...how); seen.push(place()); }
      key("ArrowDown");
      document.activeElement.blur();
      key("ArrowUp");
      seen.push(place());
      const apart = document.getElementById("apart"), said = [text("said")];
      apart.click();
      return [...seen, [...said, text("said"), text("strongest")], overflow()]"""
    *places, (without, within, strongest), overflow = browse(page_of("decoder"), script, tmp_path, 400, "#t=5&l=1&h=0")
    first = [
        "token 5 · layer 1 · head 0",
        "token 0 · layer 0 · head 0",
        "token 1 · layer 0 · head 0",
        "token 1 · layer 1 · head 0",
    ]
    assert places == [*first, *["token 1 · layer 1 · head 1"] * 2]
    assert overflow <= 0
    assert "The sink, <bos>, told apart: " in without and " looks at a 100%. The" in without
    assert "told apart" not in within and "<bos>" in within and "<bos>" in strongest


@needs_chromium
@pytest.mark.slow
def test_the_other_kinds_of_models(tmp_path: Path) -> None:
    masked = browse(page_of("encoder"), 'return [text("next"), text("spoken"), text("at-t")]', tmp_path)
    assert "in place of" in masked[0] and "[MASK]" in masked[1] and masked[2] == "token 2"
    script = """const which = document.getElementById("which"), titles = [...which.options].map(o => o.textContent);
      which.value = "2"; which.dispatchEvent(new Event("change"));
      const count = what => document.querySelectorAll(what).length;
      return [titles, count("#look .flow"), count("#grid canvas"), text("order-lines")]"""
    titles, flows, canvases, lines = browse(page_of("both"), script, tmp_path)
    assert titles == ["encoder", "decoder", "cross-attention"] and (flows, canvases) == (2, 1)
    assert "alone" not in lines  # the token is of the output, and the lines are of the text


@needs_chromium
def test_small_numbers_stand_beside_their_chart(tmp_path: Path) -> None:
    data, attentions = inside(WRITER, "ab")
    small = [[[0.0007, 0.0001, 0.0003]] * 2] * 2
    data["moved"]["text"] = [{**part, "share": share} for part, share in zip(data["moved"]["text"], small, strict=True)]
    script = """const texts = [...document.querySelectorAll("#moved svg text")];
      return [texts.map(e => e.textContent), Math.min(...texts.map(e => e.getBBox().x))]"""
    labels, left = browse(html("small", data, attentions), script, tmp_path, 400)
    assert "0.000030" in labels and left >= 0
