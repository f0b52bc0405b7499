"""Showing a URL without the credentials it may carry."""

from __future__ import annotations

from pydantic import Secret

__all__ = ["MASK", "SecretUrl", "mask_url"]

MASK = "***"


def mask_url(text: str) -> str:
    """The URL with scheme, host and path in clear, and user info, query and fragment masked.

    Built to err on the side of hiding: whatever stands before the last "@" counts as credentials,
    because a password with an unescaped "/" or "?" would otherwise be taken for a host. Text
    without "://" and "@" is masked whole, since nothing says which part of it is a host.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    _, at, place = rest.rpartition("@")
    if not separator and not at:
        return MASK
    if at:
        place = f"{MASK}@{place}"
    # What has other characters is no scheme, and may be part of the credentials.
    shown = f"{scheme}://" if scheme.isalnum() else ""
    return shown + _without_query(place)


def _without_query(place: str) -> str:
    end = next((index for index, character in enumerate(place) if character in "?#"), None)
    return place if end is None else place[: end + 1] + MASK


class SecretUrl(Secret[str]):
    """A URL whose `repr`, `str` and JSON hide its credentials; `get_secret_value` has it whole."""

    def _display(self) -> str:
        return mask_url(self.get_secret_value())
