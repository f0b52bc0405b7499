"""The page that tells people what is done about each failure."""

from __future__ import annotations

from pathlib import Path

from resilient_ai._resilience.failures import VERDICTS, FailureClass, Verdict

PAGE = Path(__file__).parents[3] / "docs" / "failures.md"


def cells(verdict: Verdict) -> list[str]:
    """The last six cells of a row of the table."""

    def yes(value: bool) -> str:
        return "yes" if value else "-"

    counts = "counts" if verdict.counts else "one row only" if verdict.split else "-"
    return [
        "opens at once" if verdict.opens_at_once else counts,
        yes(verdict.probe_first),
        "in pieces" if verdict.split else yes(verdict.retry_same_device),
        yes(verdict.replace_worker),
        yes(verdict.fail_over),
        verdict.healed_by.replace("_", " "),
    ]


def test_the_table_is_what_the_program_does():
    """Each class has a row, in the order of gravity, and the row says what its verdict says."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    expected = [[f"`{cls}`", *cells(VERDICTS[cls])] for cls in FailureClass]
    # The page has other tables too, of fewer columns.
    assert [[row[0], *row[2:]] for row in rows if len(row) == 2 + len(expected[0]) - 1] == expected
