import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lm.data.records import Jsonl, Parquet, Tfds
from lm.data.source import held_out

TEXTS = [f"text {i} é\n" for i in range(100)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for part in (0, 1):
        own = TEXTS[part * 50 : part * 50 + 50]
        lines = "\n".join(json.dumps({"text": t, "id": i}) + ("\n" if i == 7 else "") for i, t in enumerate(own))
        (tmp_path / f"{part}.jsonl").write_text(lines)
        pyarrow.parquet.write_table(
            pyarrow.table({"text": own, "id": range(50)}), tmp_path / f"{part}.parquet", row_group_size=7
        )
    return tmp_path


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
def test_every_record_is_in_one_split(kind, files: Path) -> None:
    source = kind(str(files / f"*.{kind.__name__.lower()}"), heldout=0.2)
    train, heldout = (list(source.documents(split)) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(TEXTS)
    assert 5 <= len(heldout) <= 40
    documents = source.documents("train")
    assert [documents[i] for i in reversed(range(len(documents)))] == train[::-1]


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
def test_the_held_out_records_may_be_a_file(kind, files: Path) -> None:
    paths = [str(files / f"{part}.{kind.__name__.lower()}") for part in (0, 1)]
    source = kind(paths[0], heldout=paths[1])
    assert list(source.documents("train")) == TEXTS[:50] and list(source.documents("heldout")) == TEXTS[50:]
    assert source.fingerprint() == kind(*paths[:1], heldout=paths[1]).fingerprint() != kind(paths[0]).fingerprint()


def test_bad_records_are_named(files: Path) -> None:
    (files / "bad.jsonl").write_text('{"text": "a"}\n{"text": }\n')
    (files / "list.jsonl").write_text("[1]\n")
    (files / "number.jsonl").write_text('{"text": 3}\n')
    (files / "blank.jsonl").write_text("\n\n")
    (files / "half.jsonl").write_text('{"text": "a"}\n\n{"text": "b\\ud800"}\n')
    (files / "bad.parquet").write_text("no parquet")
    field = "no field 'content'; there are: text, id"
    cases = [
        (field, Jsonl(str(files / "0.jsonl"), "content")),
        (field, Parquet(str(files / "0.parquet"), "content")),
        ("bad.jsonl: the line at byte 14 is not JSON", Jsonl(str(files / "bad.jsonl"))),
        ("the line at byte 0 is list, expected an object with 'text'", Jsonl(str(files / "list.jsonl"))),
        ("field 'text' holds int, expected text", Jsonl(str(files / "number.jsonl"))),
        ("has no train documents", Jsonl(str(files / "blank.jsonl"))),
        ("bad.parquet is not a Parquet file", Parquet(str(files / "bad.parquet"))),
        ("no such file: .*missing", Jsonl(str(files / "missing.jsonl"))),
        (r"is a folder: expected a file, or a pattern of files as in .*/\*.jsonl", Jsonl(str(files))),
        (
            r"half.jsonl: the line at byte 15: field 'text' has no UTF-8 form.*lone surrogate '\\ud800' \(line 3\)",
            Jsonl(str(files / "half.jsonl")),
        ),
    ]
    for message, source in cases:
        with pytest.raises(ValueError, match=message):
            list(source.documents("train"))


# A data set of TFDS's own kind, as a user's machine has it on disk; read in a fresh process to see what gets imported.
TFDS = """
import sys
import tensorflow_datasets as tfds
from lm.data.records import Tfds

class Poems(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({"poem": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
    def _split_generators(self, dl_manager):
        return {s: self._generate_examples(n) for s, n in (("train", 9), ("validation", 3))}
    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"poem": f"poem {i} é"}

folder = sys.argv[1]
Poems(data_dir=folder, file_format="array_record").download_and_prepare()
source = Tfds("poems", field="poem", data_dir=folder, train="train[:6]")
assert list(source.documents("train")) == [f"poem {i} é" for i in range(6)]
assert source.documents("heldout")[2] == "poem 2 é"
for broken in (Tfds("poems", data_dir=folder), Tfds("poems", "poem", folder, train="nonsense")):
    try:
        list(broken.documents("train"))
    except ValueError as error:
        print(error)
assert not {"tensorflow", "torch"} & set(sys.modules)
"""


def test_a_tfds_data_set_is_read_without_tensorflow(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TFDS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no field 'text'; there are: poem" in done.stdout
    assert "poems has no split 'nonsense'" in done.stdout


def test_a_tfds_data_set_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot get the TFDS data set 'no_such_set_at_all'.*network") as caught:
        Tfds("no_such_set_at_all", data_dir=str(tmp_path)).documents("train")
    assert "\n" not in str(caught.value)


def test_what_the_extra_lacks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for source in (Parquet(str(tmp_path / "a.parquet")), Tfds("no_such_set", data_dir=str(tmp_path))):
        with pytest.raises(ValueError, match=r'need the extra datasets: pip install -e "\.\[datasets\]"'):
            source.documents("train")


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
def test_another_file_moves_none_to_the_other_split(kind, files: Path) -> None:
    """Also one that comes before the others by name, with documents that are there already."""
    end = kind.__name__.lower()
    source = kind(str(files / f"*.{end}"), heldout=0.2)
    before = {split: set(source.documents(split)) for split in ("train", "heldout")}
    if kind is Jsonl:
        (files / "-first.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ["new", *TEXTS[:9]]))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": ["new", *TEXTS[:9]]}), files / "-first.parquet")
    after = {split: list(source.documents(split)) for split in before}
    assert all(before[split] == set(after[split]) - {"new"} for split in before)
    assert sum(map(len, after.values())) == 110


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
def test_records_of_before_are_split_by_number(kind, files: Path) -> None:
    source = kind(str(files / f"*.{kind.__name__.lower()}"), heldout=0.2)
    before = source.earlier()
    assert list(before.documents("heldout")) == [text for i, text in enumerate(TEXTS) if held_out(str(i), 0.2)]
    assert list(before.documents("train")) == [text for i, text in enumerate(TEXTS) if not held_out(str(i), 0.2)]
    paths = sorted(files.glob(f"*.{kind.__name__.lower()}"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    text = json.dumps([kind.__name__, {"field": "text", "heldout": 0.2}, hashes], sort_keys=True)
    assert before.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:16] != source.fingerprint()
