"""docs/families.md is what certificates/families.py writes of the architectures as they are."""

from pathlib import Path

from certificates.families import page
from lm.pretrained.known import ARCHITECTURES


def test_the_page_is_of_today() -> None:
    found = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    assert found == page(), "python -m certificates.families docs/families.md"
    assert all(architecture.name in found for architecture in ARCHITECTURES)
