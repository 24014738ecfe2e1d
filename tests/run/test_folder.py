"""A run's folder: what it began with, it goes on with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lm.data.loader import prepare
from lm.data.mixture import Data, Mixture
from lm.data.source import TextFolder
from lm.run.folder import as_begun, begin_alike, check_sources, claim
from lm.text.tokenizer import Bytes
from tests.tiny import experiment, write_texts


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    return write_texts(tmp_path / "texts")


def data(texts: Path, *names: str) -> Data:
    sources = {name: TextFolder(str(texts / name), heldout=0.3) for name in names}
    return Data(Mixture(sources, {"sums": 0.7, "words": 0.3}), Bytes())


def test_a_page_with_its_sources_in_another_order_has_another_fingerprint_and_resumes_in_the_first(
    texts: Path, tmp_path: Path
) -> None:
    page, sorted_again = data(texts, "words", "sums"), data(texts, "sums", "words")
    whole = experiment(texts)
    assert replace(whole, data=page).fingerprint != replace(whole, data=sorted_again).fingerprint
    check_sources(tmp_path, page.mixture.sources)
    resumed = as_begun(tmp_path, sorted_again)
    assert list(resumed.mixture.sources) == ["words", "sums"]
    for step in range(3):
        batches = [prepare(one, 32, 8).batch(step)["tokens"].tolist() for one in (page, resumed, sorted_again)]
        assert batches[0] == batches[1] != batches[2]
    check_sources(tmp_path, resumed.mixture.sources)
    assert list(json.loads((tmp_path / "data.json").read_text())) == ["words", "sums"]


def test_a_run_of_before_keeps_its_split(texts: Path, tmp_path: Path) -> None:
    page = data(texts, "sums", "words")
    assert as_begun(tmp_path, page) == page
    began = {name: source.earlier() for name, source in page.mixture.sources.items()}
    check_sources(tmp_path, began)
    resumed = as_begun(tmp_path, page)
    assert resumed.mixture.sources == began
    check_sources(tmp_path, resumed.mixture.sources)
    (texts / "words" / "0.txt").write_text("another")
    with pytest.raises(ValueError, match="source 'words' has changed since this run began"):
        check_sources(tmp_path, as_begun(tmp_path, page).mixture.sources)


def test_the_runs_of_a_study_have_one_split_and_one_order(texts: Path, tmp_path: Path) -> None:
    """Those too that begin after an earlier version has begun others."""
    old, new, other = (tmp_path / "runs" / arm / "0" for arm in ("old", "new", "other"))
    page = replace(experiment(texts), data=data(texts, "words", "sums"))
    began = {name: source.earlier() for name, source in page.data.mixture.sources.items()}
    claim(old, page, "")
    check_sources(old, began)
    sorted_again = replace(page, data=data(texts, "sums", "words"), seed=1)
    claim(new, sorted_again, "")
    begin_alike(new, tmp_path.glob("runs/*/*"))
    assert list(as_begun(new, sorted_again.data).mixture.sources.items()) == list(began.items())
    sources = {
        "sums": sorted_again.data.mixture.sources["sums"],
        "words": TextFolder(str(texts / "words"), heldout=0.4),
    }
    differs = replace(page, data=Data(Mixture(sources, page.data.mixture.weights), Bytes()))
    claim(other, differs, "")
    begin_alike(other, tmp_path.glob("runs/*/*"))
    found = as_begun(other, differs.data).mixture.sources
    assert found == {"sums": began["sums"], "words": sources["words"]}
    check_sources(other, found)
    (texts / "sums" / "0.txt").write_text("another")
    with pytest.raises(ValueError, match="source 'sums' has changed since this run began"):
        check_sources(new, as_begun(new, sorted_again.data).mixture.sources)


@pytest.mark.parametrize("content", ["", "[]", '{"sums": 3}', "{"])
def test_a_damaged_record_of_the_sources_is_named(content: str, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content)
    for read in (as_begun, lambda folder, page: check_sources(folder, page.mixture.sources)):
        with pytest.raises(ValueError, match="data.json is damaged: .*; choose another --workdir"):
            read(tmp_path, data(texts, "sums", "words"))
