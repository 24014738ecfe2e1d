import ast
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lm.data import stdlib
from lm.data.stdlib import HELDOUT, Stdlib, docstrings, documents_of, held_out, library, modules, topics


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A library of forty modules, with what must be left out."""
    for name in ("argparse", "textwrap", *(f"m{i}" for i in range(38))):
        (tmp_path / f"{name}.py").write_text(
            f'"""{name} is a module about {name}, and little else of any note to anyone."""\n' * 3
        )
    for name in ("test/test_a.py", "site-packages/b.py", "lib2to3/c.py", "config-3.11-x/d.py", "encodings/cp1.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("left_out = True\n" * 20)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n" * 20)
    (tmp_path / "pydoc_data").mkdir()
    shared = "A paragraph that two of the topics share, long enough to count as one.\n"
    pairs = {"if": f"The if topic.\n\n{shared}", "compound": f"All topics.\n\n{shared}", "del": "Something else. " * 9}
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {pairs!r}\n")
    return tmp_path


def test_the_real_library_gives_megabytes_of_text() -> None:
    names = modules(library())
    assert len(names) > 300 and "textwrap.py" in names
    assert not any("test" in n.split("/") or "site-packages" in n for n in names)
    heldout = list(documents_of(library(), "code", "heldout"))
    assert 100_000 < sum(len(text) for _, text in heldout) < 2_000_000
    assert all((library() / name).read_text() == text for name, text in heldout[:5])


def test_parts_are_split_by_the_same_files(small: Path) -> None:
    names = {(p, s): {n for n, _ in documents_of(small, p, s)} for p in stdlib.PARTS for s in ("train", "heldout")}
    assert not names["code", "train"] & names["prose", "heldout"]
    assert not names["code", "heldout"] & names["prose", "train"]
    assert names["code", "train"] | names["code", "heldout"] == {f for f in modules(small) if f != "latin.py"}
    assert all(held_out(n, HELDOUT) for n in names["code", "heldout"])


def test_docstrings_are_those_of_the_module_in_order() -> None:
    source = inspect.getsource(textwrap)
    text = docstrings(source)
    assert text.startswith("Text wrapping and filling.")
    assert text.index("Object for wrapping/filling text.") < text.index("Collapse and truncate the given text")
    assert "import" not in docstrings("import os\nx = 'import'\n")
    assert docstrings("def broken(:\n") == ""


def test_docstrings_are_found_in_every_block() -> None:
    blocks = ("if x", "else", "while x", "for x in y", "else", "with x", "try", "except E", "else", "finally")
    functions = [f"{block}:\n  def f{i}():\n    'Of {i}.'\n    class C: 'In {i}.'" for i, block in enumerate(blocks)]
    matched = "match x:\n  case 1:\n    async def f():\n      'Last.'\n"
    wanted = [text for i in range(len(blocks)) for text in (f"Of {i}.", f"In {i}.")]
    assert docstrings("\n".join([*functions, matched])).split("\n\n") == [*wanted, "Last.", ""]


def test_no_paragraph_of_the_reference_is_in_two_documents(small: Path) -> None:
    found = dict(topics(small))
    assert set(found) == {"pydoc_data/topics.py:compound", "pydoc_data/topics.py:del"}
    assert found["pydoc_data/topics.py:compound"].count("two of the topics share") == 1
    real = topics(library())
    paragraphs = [{p for p in text.strip().split("\n\n") if len(p) > 60} for _, text in real]
    assert sum(map(len, paragraphs)) == len(set().union(*paragraphs)) if paragraphs else True


def test_its_documents_are_those_of_the_split(small: Path) -> None:
    for part in stdlib.PARTS:
        for split in ("train", "heldout"):
            wanted, found = list(documents_of(small, part, split)), Stdlib(part, str(small)).documents(split)
            assert wanted and list(found) == [text for _, text in wanted]
            assert [found.where(i) for i in range(len(found))] == [name for name, _ in wanted]
    with pytest.raises(ValueError, match="unknown split 'test'"):
        Stdlib("code", str(small)).documents("test")


def test_the_fingerprint_follows_the_library_and_the_python(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> str:
        stdlib.identity.cache_clear()
        return Stdlib("code", str(small)).fingerprint()

    first = now()
    assert now() == first != Stdlib("prose", str(small)).fingerprint()
    (small / "m1.py").write_text("changed = True\n" * 9)
    second = now()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert len({first, second, now()}) == 3


def test_a_python_without_its_library_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Python standard library in .* --text DIR"):
        Stdlib(folder=str(tmp_path)).documents("train")
    with pytest.raises(ValueError, match="expected code or prose"):
        Stdlib("poetry")


def test_tensorflow_and_torch_are_never_imported(small: Path) -> None:
    code = (
        "import sys; from lm.data.stdlib import Stdlib; from lm.data import loader\n"
        "texts = [t for p in ('code', 'prose') for s in ('train', 'heldout')"
        f" for t in Stdlib(p, {str(small)!r}).documents(s)]\n"
        "assert len(texts) > 40; print(sorted({'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_reference_is_found_in_the_file_of_this_python() -> None:
    file = library() / "pydoc_data" / "topics.py"
    if file.exists():
        assert ast.parse(file.read_text())
        assert len(topics(library())) > 30


def test_a_library_with_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    for name in ("argparse.py", "textwrap.py"):
        (tmp_path / name).write_text("x = 1\n" * 20)
    with pytest.raises(ValueError, match="has no heldout documents"):
        Stdlib("code", str(tmp_path)).documents("heldout")
