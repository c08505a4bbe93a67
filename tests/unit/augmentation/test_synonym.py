"""Synonyms by part of speech, inflection and case; where WordNet is missing, one message. CI has WordNet."""

import hashlib
import http.server
import shutil
import threading
import zipfile
from functools import partial

import nltk
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from bkray.augmentation import SynonymReplacement, check_augmentations
from bkray.augmentation.fetch import fetch
from bkray.augmentation.wordnet import NEEDED, check_data, fault, missing_data, thesaurus
from bkray.cli import app
from bkray.config import UserError
from bkray.config.preparation import Synonym
from bkray.corpus import DOCUMENTS, stable_id

needs_data = pytest.mark.skipif(bool(missing_data()), reason=f"nltk's {' and '.join(NEEDED)} are not here")

FILES = {
    "wordnet": [
        *("lexnames", "index.noun", "index.verb", "index.adj", "index.adv"),
        *("data.noun", "data.verb", "data.adj", "data.adv", "noun.exc", "verb.exc", "adj.exc", "adv.exc"),
    ],
    "averaged_perceptron_tagger_eng": [
        f"averaged_perceptron_tagger_eng.{part}.json" for part in ("weights", "tagdict", "classes")
    ],
}
TEXT = (
    "The children were trying to buy large houses , and movies of the Big cities began quickly . "
    "Movies show the film . FILM film2 don't e-mail 1,000 Mr. Brown saw geese"
)


def documents(texts):
    rows = [
        {"doc_id": stable_id("synonym", i), "text": text, "source": "s", "split": "train"}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


def replaced(text, probability=0.999, **options):
    """{word: what stands in its place} of one document, over many draws."""
    pairs: dict[str, set[str]] = {}
    for seed in range(20):
        (result,) = SynonymReplacement(probability, seed, **options)(documents([text]))["text"].to_pylist()
        for old, new in zip(text.split(), result.split(), strict=True):
            pairs.setdefault(old, set()).add(new)
    return pairs


@needs_data
def test_replacements_keep_part_of_speech_inflection_and_case():
    pairs = replaced(TEXT, max_share=1.0)
    assert pairs["movies"] == {"films", "pictures", "flicks"}
    assert pairs["Movies"] == {"Films", "Pictures", "Flicks"}
    assert pairs["began"] == {"started"}
    assert pairs["trying"] >= {"seeking", "attempting"}
    assert pairs["buy"] == {"purchase"}
    assert pairs["large"] == {"big"}
    assert "kids" in pairs["children"]


@needs_data
def test_what_is_left_alone():
    pairs = replaced(TEXT, max_share=1.0)
    for word in ("The", "were", "to", ",", "of", "FILM", "film2", "don't", "e-mail", "1,000", "Mr.", "Brown"):
        assert pairs[word] == {word}, word
    numbers = "ten cats , a hundred men , two dozen eggs , thousands of them , zero , the third man"
    assert all(made == {word} for word, made in replaced(numbers, max_share=1.0).items() if word != "men")
    assert thesaurus().synonyms("film", "NNP") == ()
    assert thesaurus().synonyms("larger", "JJR") == (), "no comparative is made up"


@needs_data
def test_words_of_an_expression_stay_and_change_apart():
    text = "Real estate and (post offices) and prime ministers took place in *living rooms* ."
    assert all(made == {word} for word, made in replaced(text, max_share=1.0).items())
    for gap in (", ", "  ", "\n"):
        apart = replaced(text.replace(" ", gap), max_share=1.0)
        changed = {word.strip(",*()") for word, made in apart.items() if made != {word}}
        assert changed == {"Real", "post", "prime", "ministers", "place", "living", "rooms"}
    pairs = replaced("the large businesses", max_share=1.0)
    assert pairs["businesses"] == {"concerns"}, "big business is one, but that is not what stood there"


@needs_data
def test_the_tag_comes_from_the_neighbours():
    assert "responds" in replaced("she answers him .", max_share=1.0)["answers"]
    assert "responses" in replaced("the two answers are good .", max_share=1.0)["answers"]


@needs_data
def test_probability_and_largest_share():
    text = "large " * 400
    changed = [
        sum(word == "big" for word in made.split())
        for made in (
            SynonymReplacement(0.2, 3)(documents([text]))["text"][0].as_py(),
            SynonymReplacement(0.9, 3, max_share=0.25)(documents([text]))["text"][0].as_py(),
        )
    ]
    assert 55 <= changed[0] <= 105
    assert changed[1] == 100


@needs_data
def test_batches_change_nothing_and_punctuation_and_gaps_stay():
    table = documents([TEXT, "A large (large) house,\n\n  bought; large!", "large"])
    whole = SynonymReplacement(0.5, 7)(table)["text"].to_pylist()
    assert [SynonymReplacement(0.5, 7)(table.slice(i, 1))["text"][0].as_py() for i in range(3)] == whole
    (result,) = SynonymReplacement(0.999, 0, max_share=1.0)(table.slice(1, 1))["text"].to_pylist()
    assert result == "A big (big) house,\n\n  purchased; big!"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "home")])
    monkeypatch.setattr(nltk.downloader.Downloader, "default_download_dir", lambda _: str(tmp_path / "home"))


def test_missing_data_is_one_message_with_the_ways_out(nowhere):
    with pytest.raises(
        UserError,
        match=r"wordnet and averaged.*NLTK_DATA.*bkray fetch wordnet.*--deb.*without the tagger.*elsewhere",
    ):
        check_augmentations([Synonym(kind="synonym")])


@pytest.fixture
def home(nowhere, tmp_path):
    """A folder of nltk's with all that is needed, by its names."""
    for package, place in NEEDED.items():
        (tmp_path / "home" / place).mkdir(parents=True)
        for name in FILES[package]:
            (tmp_path / "home" / place / name).write_text("words\n")
    assert missing_data() == []
    return tmp_path / "home"


def pack(folder):
    """The folder as an archive of nltk's in its place."""
    shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    return folder.with_name(f"{folder.name}.zip")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("wordnet", "lexnames"),
        ("wordnet", "data.adv"),
        ("averaged_perceptron_tagger_eng", "averaged_perceptron_tagger_eng.tagdict.json"),
    ],
)
def test_what_lacks_a_file_is_named_with_it(home, package, name, packed):
    folder = home / NEEDED[package]
    (folder / name).unlink()
    place = pack(folder) if packed else folder
    assert missing_data() == [package]
    with pytest.raises(
        UserError, match=rf"nltk's {package} \({place} holds no whole {name}\): set NLTK_DATA"
    ):
        check_data()


def test_what_was_cut_is_named(home):
    wordnet, tagger = (home / place for place in NEEDED.values())
    weights = "averaged_perceptron_tagger_eng.weights.json"
    (tagger / weights).write_text('{"i": {"NN": 0.')
    for name in FILES["wordnet"]:
        (wordnet / name).write_text("")
    assert fault("averaged_perceptron_tagger_eng") == f"{tagger} holds no whole {weights}"
    assert fault("wordnet") == f"{wordnet} holds no whole lexnames, index.noun, index.verb and 10 more"
    archive = pack(wordnet)
    archive.write_bytes(archive.read_bytes()[:-100])
    assert fault("wordnet") == f"{archive} cannot be read: File is not a zip file"


def test_an_archive_in_use_of_nltk_is_whole(home):
    for place in NEEDED.values():
        pack(home / place)
    assert missing_data() == []


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A loopback server, which nltk would refuse, with an index and two small packages in nltk's form."""
    monkeypatch.setattr(nltk.pathsec, "ENFORCE", False)
    folder = tmp_path / "mirror"
    folder.mkdir()
    entries = []
    for package, place in NEEDED.items():
        archive = folder / f"{package}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name in FILES[package]:
                file.writestr(f"{package}/{name}", "words\n")
        checksum = hashlib.md5(archive.read_bytes()).hexdigest()
        entries.append(
            f'<package id="{package}" subdir="{place.split("/")[0]}" unzip="1" '
            f'unzipped_size="{6 * len(FILES[package])}" size="{archive.stat().st_size}" '
            f'checksum="{checksum}" url="URL/{package}.zip"/>'
        )
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    url = f"http://127.0.0.1:{server.server_port}"
    index = f"<nltk_data><packages>{''.join(entries)}</packages></nltk_data>".replace("URL", url)
    (folder / "index.xml").write_text(index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"{url}/index.xml"
    server.shutdown()


def test_fetch_downloads_what_is_missing_once(nowhere, mirror):
    def fetched():
        return CliRunner().invoke(app, ["fetch", "wordnet", "--index", url]).output

    folder, url = mirror
    assert "wordnet and averaged_perceptron_tagger_eng: now in" in fetched()
    assert missing_data() == []
    shutil.rmtree(folder)
    assert "already there" in fetched()


def test_fetch_takes_what_is_damaged_as_missing_and_moves_it_aside(home, mirror, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no apt-get
    wordnet, tagger = (home / place for place in NEEDED.values())
    (wordnet / "lexnames").unlink()
    archive = pack(tagger)
    archive.write_bytes(b"cut")
    said = fetch("wordnet", mirror[1])
    assert f"{wordnet} holds no whole lexnames: moved to {wordnet.parent}/damaged-wordnet-" in said
    assert f"{archive} cannot be read: File is not a zip file: moved to {tagger.parent}/damaged-" in said
    assert f"wordnet and averaged_perceptron_tagger_eng: now in {home}" in said
    assert missing_data() == []
    (kept,) = wordnet.parent.glob("damaged-wordnet-*/wordnet")
    assert (kept / "data.noun").exists()
    (wordnet / "lexnames").unlink()
    assert "already there" in fetch("wordnet"), "the archive that came is whole"
    pack(kept).rename(wordnet.with_name("wordnet.zip"))
    said = r"fetch: .*wordnet\.zip holds no whole lexnames: moved to .*; wordnet could not be downloaded"
    with pytest.raises(UserError, match=said):
        fetch("wordnet", mirror[1].replace("index.xml", "nothing.xml"))


def test_a_failed_fetch_says_so(nowhere, mirror, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no apt-get
    folder, url = mirror
    (folder / "wordnet.zip").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"could not be downloaded .*http://127.*--index.*NLTK_DATA"):
        fetch("wordnet", url)
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch("wordnet", url.replace("index.xml", "nothing.xml"))
    with pytest.raises(UserError, match="only `bkray fetch wordnet`"):
        fetch("wordnets")
