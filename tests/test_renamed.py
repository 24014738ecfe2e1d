"""Plain data under names of before is read under today's."""

import pytest

from lm import renamed


def test_classes_fields_and_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renamed.CLASSES, "Old", "New")
    monkeypatch.setitem(renamed.FIELDS, "New", {"a": "b"})
    monkeypatch.setitem(renamed.MOVED, "Outer", lambda data: {**data, "moved": data["inner"]["b"]})
    old = {"type": "Outer", "inner": {"type": "Old", "a": [{"type": "Old", "a": 1}]}}
    new = {"type": "New", "b": [{"type": "New", "b": 1}]}
    assert renamed.upgrade(old) == {"type": "Outer", "inner": new, "moved": new["b"]}
    assert renamed.upgrade(new) == new
