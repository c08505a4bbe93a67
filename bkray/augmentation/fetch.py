"""`bkray fetch wordnet`: nltk's downloader, once, where it is called; workers never download."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from nltk.downloader import Downloader

from bkray.augmentation.wordnet import NEEDED, missing_data
from bkray.config import UserError


def fetch(what: str, index: str | None = None) -> str:
    """Download what is missing of `what` (wordnet, its tagger included); returns what there is to say.

    Raises UserError for another name, and where the download fails.
    """
    if what != "wordnet":
        raise UserError(f"fetch {what}: there is only `bkray fetch wordnet`")
    missing = missing_data()
    if not missing:
        return f"{' and '.join(NEEDED)}: already there"
    downloader = Downloader(server_index_url=index)
    folder = downloader.default_download_dir()
    try:
        for package in missing:
            downloader.download(package, download_dir=folder, quiet=True, raise_on_error=True)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(_failure(missing, downloader.url, str(error))) from error
    if lacking := missing_data():
        raise UserError(_failure(lacking, downloader.url, f"{folder} lacks them still"))
    return f"{' and '.join(missing)}: now in {Path(folder)}"


def _failure(missing: list[str], url: str, reason: str) -> str:
    return (
        f"fetch: {' and '.join(missing)} could not be downloaded from {url} ({reason}): name a mirror with "
        "--index, or bring corpora/ and taggers/ of another machine and set NLTK_DATA to their place"
    )
