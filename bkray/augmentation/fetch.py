"""`bkray fetch wordnet`: nltk's downloader or Debian's package, once, where it is called.

Workers never download.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from xml.etree import ElementTree

from nltk.downloader import Downloader

from bkray.augmentation import debian
from bkray.augmentation.wordnet import NEEDED, fault, find_data, missing_data
from bkray.config import UserError


def fetch(what: str, index: str | None = None, deb: Path | None = None) -> str:
    """Bring what is missing of `what` (wordnet, its tagger included); returns what there is to say.

    WordNet comes from `deb`, a file of Debian's wordnet-base, where it is given; else from nltk's downloader,
    and where that fails by apt-get. The tagger comes from nltk's downloader alone. Raises UserError for
    another name, and where something is missing still. What is damaged is moved aside.
    """
    if what != "wordnet":
        raise UserError(f"fetch {what}: there is only `bkray fetch wordnet`")
    moved = "".join(map(_set_aside, NEEDED))
    missing = missing_data()
    if not missing:
        return f"{moved}{' and '.join(NEEDED)}: already there"
    downloader = Downloader(server_index_url=index)
    folder = Path(downloader.default_download_dir())
    faults = []
    if deb and "wordnet" in missing:
        debian.unpack(deb, folder / NEEDED["wordnet"])
    try:
        for package in missing_data():
            downloader.download(package, download_dir=str(folder), quiet=True, raise_on_error=True)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        faults.append(f"{downloader.url}: {error}")
        faults += _from_debian(folder)
    if lacking := missing_data():
        reasons = faults or [f"{package}: {fault(package)}" for package in lacking]
        raise UserError(f"fetch: {moved}{_failure(missing, lacking, '; '.join(reasons), folder)}")
    return f"{moved}{' and '.join(missing)}: now in {folder}"


def _set_aside(package: str) -> str:
    """Move what is damaged of `package` into a folder beside it; returns what there is to say."""
    said = ""
    while (place := find_data(package)) and (why := fault(package)):
        try:
            aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f"damaged-{package}-"))
            place.rename(aside / place.name)
        except OSError as error:
            raise UserError(
                f"fetch: {why}, and it cannot be moved aside ({error}): remove it, and fetch again"
            ) from error
        said += f"{why}: moved to {aside}; "
    return said


def _from_debian(folder: Path) -> list[str]:
    """Why WordNet, where it is missing, did not come by apt-get either."""
    if "wordnet" in missing_data():
        try:
            debian.download_and_unpack(folder / NEEDED["wordnet"])
        except UserError as error:
            return [str(error)]
    return []


def _failure(missing: list[str], lacking: list[str], reasons: str, folder: Path) -> str:
    there = [package for package in missing if package not in lacking]
    come = f"{' and '.join(there)}: now in {folder}; " if there else ""
    package = (
        f", name a file of Debian's {debian.PACKAGE} with --deb (it holds WordNet, not the tagger)"
        if "wordnet" in lacking
        else f" (Debian's {debian.PACKAGE} does not hold the tagger)"
    )
    return (
        f"{come}{' and '.join(lacking)} could not be downloaded ({reasons}): name a mirror with "
        f"--index{package}, or bring corpora/ and taggers/ of another machine and set NLTK_DATA to their "
        "place"
    )
