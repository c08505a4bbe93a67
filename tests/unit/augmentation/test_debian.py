"""WordNet from Debian's own package, where apt-get can download it; what it lacks is said."""

import shutil
import subprocess

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from typer.testing import CliRunner

from bkray.augmentation.fetch import fetch
from bkray.augmentation.wordnet import missing_data
from bkray.cli import app
from bkray.config import UserError

DEAD = "http://127.0.0.1:9/index.xml"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("debian")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("apt-get or dpkg-deb is not here")
    command = ["apt-get", "download", "wordnet-base"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"apt-get cannot download wordnet-base: {done.stderr.strip()[-200:]}")
    return next(folder.glob("*.deb"))


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "home")])
    monkeypatch.setattr(nltk.downloader.Downloader, "default_download_dir", lambda _: str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_package_is_unpacked_and_nltk_reads_it(home, package):
    result = CliRunner().invoke(app, ["fetch", "wordnet", "--index", DEAD, "--deb", str(package)])
    said = " ".join((result.output + result.stderr).split())
    assert result.exit_code == 2, "the tagger is missing"
    assert "wordnet: now in" in said
    assert "wordnet-base does not hold the tagger" in said
    assert missing_data() == ["averaged_perceptron_tagger_eng"]
    read = WordNetCorpusReader(str(home / "corpora" / "wordnet"), None)
    assert read.synsets("movie", "n")[0].lemma_names()[:2] == ["movie", "film"]
    assert read.synsets("movie", "n")[0].lexname() == "noun.communication"
    assert read.synsets("buy", "v")[0].lexname() == "verb.possession"
    assert (read.morphy("children", "n"), read.morphy("began", "v")) == ("child", "begin")
    assert [path.name for path in (home / "corpora").iterdir()] == ["wordnet"]


def test_where_the_downloader_fails_apt_get_brings_wordnet(home, package):
    with pytest.raises(
        UserError, match=r"wordnet: now in .*tagger_eng could not be downloaded .*127\.0\.0\.1"
    ):
        fetch("wordnet", DEAD)
    assert missing_data() == ["averaged_perceptron_tagger_eng"]


def test_a_file_that_is_not_the_package_is_named(home, tmp_path, package):
    other = tmp_path / "other.deb"
    other.write_bytes(b"words")
    with pytest.raises(UserError, match=r"dpkg-deb -x .*other\.deb.* failed \("):
        fetch("wordnet", DEAD, other)
    (tmp_path / "empty" / "DEBIAN").mkdir(parents=True)
    control = "Package: empty\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: nothing\n"
    (tmp_path / "empty" / "DEBIAN" / "control").write_text(control)
    subprocess.run(["dpkg-deb", "-b", str(tmp_path / "empty"), str(other)], check=True, capture_output=True)
    with pytest.raises(UserError, match=r"other\.deb: it lacks usr/share/.*wordnet-base"):
        fetch("wordnet", DEAD, other)
    assert "wordnet" in missing_data()


def test_without_apt_get_and_network_all_ways_are_named(home, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*needs apt-get.*--index.*--deb.*NLTK_DATA"):
        fetch("wordnet", DEAD)
