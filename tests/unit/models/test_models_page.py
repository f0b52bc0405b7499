"""The page that tells people which models there are."""

from __future__ import annotations

from pathlib import Path

from resilient_ai._models.catalogue import builtin_catalogue

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_table_is_the_catalogue():
    """Each card has a row, in the order of rank, that says what the card says."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    expected = [
        [
            f"`{card.name}`",
            card.kind,
            card.family,
            str(card.dimension or "-"),
            f"{card.max_tokens:,}",
            card.pooling or "-",
            card.score or "-",
            card.licence,
            f"`{card.sources[0].location}`",
        ]
        for card in builtin_catalogue()
    ]
    assert [row[:-1] for row in rows if len(row) == len(expected[0]) + 1] == expected
