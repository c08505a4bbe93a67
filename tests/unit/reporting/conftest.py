"""What the tests of the HTML pages share: writing one, taking it apart, looking for what it would fetch."""

import re
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """The parts of a page that tests ask about; fails where elements do not nest."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.rows = [], [], [], "", []
        self.feed(html)
        assert self.open == []
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row[0].split()[0] == first)


@pytest.fixture(scope="session")
def parse():
    return Page


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Write a report by its function and return the page."""

    def write_into(write, report):
        path = tmp_path_factory.mktemp("page") / "out" / "report.html"
        write(path, report)
        assert [file.name for file in path.parent.iterdir()] == ["report.html"]
        return path.read_text(encoding="utf-8")

    return write_into


@pytest.fixture(scope="session")
def check_self_contained():
    def check(html):
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?!data:,|#)[^"'\s>]""", html)
        assert not re.findall(r"url\(\s*[\"']?(?!#)", html)
        assert "@import" not in html
        page = Page(html)
        assert not {"script", "iframe", "object", "embed", "img", "video", "audio"} & set(page.tags)
        assert not [a for a in page.attributes if a[1].startswith("on")]
        assert len(html.encode()) < 2_000_000

    return check
