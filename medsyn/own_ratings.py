"""Ratings of a campaign's own images, in its folder `ratings/`: whether there are any, and of which images.

`medsyn rate import --campaign` writes them, and then a note of what they are about: once the campaign makes other
images, they no longer count.
"""

from __future__ import annotations

from medsyn import disk
from medsyn.stage import CampaignDirectory

_SESSIONS = "sessions.parquet"  # beside the ratings' table, as every import writes it
_NOTE = "of.json"


def note(directory: CampaignDirectory) -> None:
    """Write down which images the ratings are of; the last thing of an import."""
    sessions = disk.sha256_file(directory.ratings.with_name(_SESSIONS))
    disk.write_json(directory.ratings.with_name(_NOTE), {"images": _images(directory), "sessions": sessions})


def current(directory: CampaignDirectory) -> str | None:
    """SHA-256 of the sessions that the ratings of the campaign's present images were made from; None without any."""
    try:
        noted = disk.read_json(directory.ratings.with_name(_NOTE))
        sessions: str = noted["sessions"]
        return sessions if noted["images"] == _images(directory) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _images(directory: CampaignDirectory) -> str:
    """The fingerprint of everything that the campaign's images depend on."""
    made: str = disk.read_json(directory.campaign_file)["fingerprints"]["generate"]
    return made
