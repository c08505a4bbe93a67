"""The HTML reports: complete, escaped, self-contained, and read by a real browser."""

import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from bkray.reporting import (
    ActiveArm,
    ActiveReport,
    ActiveRound,
    ComparisonArm,
    ComparisonReport,
    ComparisonRow,
    RunReport,
    SweepReport,
    TransferPhase,
    TransferReport,
    Trial,
)
from bkray.reporting.report import (
    write_active_report,
    write_comparison_report,
    write_report,
    write_sweep_report,
    write_transfer_report,
)

HOSTILE = 'if a < b && "c": <script>alert(1)</script></pre>{{ 7 * 7 }}'
SUMMARY = {
    "held_out": {"bits_per_byte": 1.41234, "nats_per_token": 3.7, "perplexity": 40.4, "split": "validation"},
    "start": {"bits_per_byte": 1.765},
    "baselines": {"unigram": 2.8, "trigram": 2.0},
    "ledger": {
        "total_flops": 4e15,
        "by_kind": {
            "training": {"flops": 3e15, "tokens": 4_000_000, "seconds": 300.0},
            "scoring": {"flops": 1e15, "tokens": 1_000_000, "seconds": 60.0},
        },
        "wall_s": 400.0,
        "tokens_seen": 4_000_000,
        "unique_tokens": 1_500_000,
    },
    "steps": 1000,
    "world_size": 2,
    "seed": 7,
    "divergences": [{"step": 1234, "what": f"loss {HOSTILE}", "done": "the step was left out"}],
    "skill": {"split": "test", "windows": 1024, "rank_correlation": {"compression": 0.456, "random": None}},
    "pool": {"run": "runs/pool", "split": "test", "before": 2.1, "after": 2.31, "replayed_tokens": 1_000_064},
    "removed": {"decontaminated": {f"equal, held out of {HOSTILE}": 12}, "filtered": {}},
    "versions": {"bkray": "0.1.0"},
}
BARE = RunReport("bare", {key: SUMMARY[key] for key in ("held_out", "ledger")}, "name: bare\n")
FULL = RunReport(
    name="quick & <b>start</b>",
    summary=SUMMARY,
    recipe="name: quickstart\ntraining: {lr: 3.0e-3}\n",
    metrics=[
        {
            "step": step,
            "tokens": 4000 * step,
            "seconds": step * 0.4,
            "loss": 8.0 - step / 20,
            "share": step / 100,
            "tokens_per_second": 10_000.0,
            "mfu": 0.415,
            "time_backward": 0.7,
            "time_other": 0.3,
            **({"validation_loss": 8.1 - step / 20} if step % 25 == 0 else {}),
        }
        for step in range(1, 101)
    ],
    stages=[
        {"name": "cleaning", "rows": 900, "rejects": 3, "removed": 97, "seconds": 1.5, "cached": True},
        {"name": "windows", "rows": 4321, "rejects": 0, "removed": 0, "seconds": 2.5, "cached": False},
    ],
    rejects={"empty text": 3},
    augmentation=[
        {"kind": "swap", "originals": 900, "made": 900, "unchanged": 12, "dropped": {}},
        {
            "kind": HOSTILE,
            "originals": 900,
            "made": 857,
            "unchanged": 0,
            "dropped": {"near copy": 41, "wreck": 2},
        },
    ],
    difficulty=("compression", np.linspace(0.1, 0.9, 200)),
    easiest=[(0.1, "\n  indented\n\n  text"), (0.2, HOSTILE)],
    hardest=[(0.9, "x" * 10_000)],
    samples=[("Return the", " sum of a < b \ud800 and more")],
    notes=["the gradient cache is off from step 37 on", f"wandb is left out: {HOSTILE}"],
)
SWEEP = SweepReport(
    name="curriculum",
    trials=[
        Trial("off", {"training.lr": 3e-3}, "finished", 1.5, 2e15, 100.0, baseline=True),
        Trial("t1", {"training.lr": 0.3}, "failed", seconds=3.0, error=f"diverged: {HOSTILE}"),
        Trial("t2", {"training.lr": 1e-3, "selection.keep": None}, "stopped early", 1.7, 5e14, 30.0),
        Trial(
            "t3",
            {"training.lr": 2e-3, "selection.keep": 0.5},
            "finished",
            1.4,
            1e15,
            90.0,
            ratio=(0.93, 0.9, 0.96),
        ),
    ],
    winner="t3",
    recipe="name: winner\n",
)

COMPARISON = ComparisonReport(
    name="models & more",
    reference="bk",
    arms=[
        ComparisonArm("bk", 2_430_000, 0.01, {0.005: 1.9, 0.01: 1.8, 0.02: 1.85}, 0.4, 1.0),
        ComparisonArm("gru", 2_440_000, 0.02, {0.005: math.inf, 0.02: 1.9}, 0.6, 1.5),
    ],
    rows=[
        ComparisonRow("steps", 400, "bk", 400, 1.8, [1.79, 1.81], None, 160.0, 1e13),
        ComparisonRow("steps", 400, "gru", 400, 1.9, [1.9, 1.9], (0.1, 0.05, 0.15), 240.0, 1e13),
        ComparisonRow("seconds", 400, "bk", 400, 1.8, [1.79, 1.81], None, 160.0, 1e13),
        ComparisonRow("seconds", 400, "gru", 267, error=f"diverged {HOSTILE}"),
    ],
    curves={
        arm: [{"step": step, "seconds": step / 2, "validation_loss": 9 - step / 100} for step in (100, 200)]
        for arm in ("bk", "gru")
    },
)

ACTIVE = ActiveReport(
    name="loop & more",
    kind="entropy",
    reference="random",
    seeds=[4, 9],
    arms=[
        ActiveArm(
            "entropy",
            300,
            1.9,
            [1.8, 2.0],
            250_000.0,
            {"training": {"flops": 6e12, "tokens": 6e5, "seconds": 60.0}},
            [
                ActiveRound(100, 100, 0, 2e12, 0.0, 20.0, 5.0),
                ActiveRound(150, 200, 400, 4e12, 1e12, 40.0, 4.5),
            ],
            (-0.1, -0.15, -0.05),
        ),
        ActiveArm(
            "random",
            350,
            2.0,
            [1.95, 2.05],
            260_000.0,
            {"training": {"flops": 7e12, "tokens": 7e5, "seconds": 70.0}},
            [ActiveRound(100, 150, 0, 3e12, 0.0, 25.0, 5.0), ActiveRound(150, 200, 0, 4e12, 0.0, 45.0, 4.6)],
        ),
        ActiveArm(
            "all",
            350,
            2.01,
            [1.96, 2.06],
            700_000.0,
            {"training": {"flops": 7e12, "tokens": 7e5, "seconds": 70.0}},
            [ActiveRound(400, 350, 0, 7e12, 0.0, 70.0, 4.6)],
            (0.01, -0.02, 0.04),
        ),
    ],
    curves={
        arm: [{"step": step, "flops": step * 2e10, "validation_loss": 9 - step / 100} for step in (100, 300)]
        for arm in ("entropy", "random", "all")
    },
    pools=[(np.linspace(4.0, 5.0, 400), np.linspace(4.9, 5.0, 50))],
)


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


def written(tmp_path, write, report):
    path = tmp_path / "out" / "report.html"
    write(path, report)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return written(tmp_path_factory.mktemp("run"), write_report, FULL)


@pytest.fixture(scope="module")
def sweep_html(tmp_path_factory):
    return written(tmp_path_factory.mktemp("sweep"), write_sweep_report, SWEEP)


def assert_self_contained(html):
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?!data:,|#)[^"'\s>]""", html)
    assert not re.findall(r"url\(\s*[\"']?(?!#)", html)
    assert "@import" not in html
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "img", "video", "audio"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert len(html.encode()) < 2_000_000


def test_run_report_is_one_self_contained_file(html):
    assert_self_contained(html)


def test_sweep_report_is_one_self_contained_file(sweep_html):
    assert_self_contained(sweep_html)


def test_active_learning_has_every_arm_its_interval_and_what_each_round_cost(tmp_path):
    html = written(tmp_path, write_active_report, ACTIVE)
    assert_self_contained(html)
    page = Page(html)
    assert page.row("entropy")[1:] == [
        *("300", "150", "250,000", "1.9000", "-0.1000", "-0.1500 … -0.0500", "7.00 × 10¹²", "14.3 %"),
        "1 min 00 s",
    ]
    assert page.row("random")[5:7] == ["–", "–"]
    assert ["1", "400", "150", "200", "4.00 × 10¹²", "1.00 × 10¹²", "40.0 s", "4.500"] in page.rows
    assert ["all", "1.9600", "2.0600"] in page.rows
    assert "loop & more" in page.text
    shown = re.findall(r'aria-label="([^"]*)"', html)
    assert shown == [
        "Differences at equal total cost",
        "Validation loss of every arm against its cost",
        "Cost of entropy by round",
        "Cost of random by round",
        "Uncertainty of the pool of round 1",
    ]


def test_comparison_has_every_arm_its_interval_and_what_failed(tmp_path):
    html = written(tmp_path, write_comparison_report, COMPARISON)
    assert_self_contained(html)
    page = Page(html)
    assert page.row("gru")[1:6] == ["400", "1.9000", "+0.1000", "+0.0500 … +0.1500", "1.9000 1.9000"]
    assert page.row("bk")[3:5] == ["–", "–"]
    assert f"diverged {HOSTILE}" in page.text
    assert "The time of 400 steps of bk" in page.text
    assert "0.02 (the edge of what was tried)" in " ".join(page.text.split())
    assert "0.005: not finite" in page.text
    assert page.tags.count("svg") == 3  # differences at equal steps; two panels of curves
    assert "1.500" in page.text


def test_transfer_has_every_phase_and_what_it_did_to_the_text_before(tmp_path):
    pool = {"before": 2.1, "after": 2.31}
    phases = [
        TransferPhase("pretrain", "../phases/pool-1", 400, 4_000_000, 3e15, 300.0, None, 2.1),
        TransferPhase("tune", ".", 50, 500_000, 1e15, 60.0, 1.9, 1.7, pool),
    ]
    html = written(tmp_path, write_transfer_report, TransferReport("both & all", phases))
    assert_self_contained(re.sub(r'href="[^"]*/report.html"', "", html))  # each phase has a page of its own
    page = Page(html)
    assert page.row("pretrain")[1:] == [
        *("400", "4,000,000", "3.00 × 10¹⁵", "75.0 %", "5 min 00 s"),
        *("–", "2.100", "–", "–"),
    ]
    assert page.row("tune")[4:] == ["25.0 %", "1 min 00 s", "1.900", "1.700", "2.100", "2.310"]
    assert ("a", "href", "../phases/pool-1/report.html") in page.attributes
    assert "All FLOPs4.00 × 10¹⁵" in page.text.replace("\n", "")
    assert page.tags.count("svg") == 2


def test_page_is_semantic(html):
    page = Page(html)
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "name", "viewport") in page.attributes
    assert page.tags.count("h1") == 1
    assert page.tags.count("figure") == page.tags.count("figcaption") == 6
    assert page.tags.count("svg") == 9
    assert "th" in page.tags
    assert "title" in page.tags


def test_headline_comes_first_with_its_baselines_and_cost(html):
    text = " ".join(Page(html).text.split())
    order = [
        text.index(part)
        for part in ("1.412 3-gram", "2.000", "2.800", "4.00 × 10¹⁵", "Pictures", "What it cost")
    ]
    assert order == sorted(order)
    assert "the model is 29.4 % lower" in text
    assert "Before tuning1.765the model is 20.0 % lower" in text
    assert "4,000,000" in text
    assert "6 min 40 s" in text
    assert "10,000" in text


def test_a_model_worse_than_counting_is_called_so(tmp_path):
    summary = {**SUMMARY, "baselines": {"unigram": 1.2}}
    text = Page(written(tmp_path, write_report, RunReport("bad", summary, ""))).text
    assert "the model is 17.7 % higher" in text
    assert "3-gram" not in text


def test_tables(html):
    page = Page(html)
    assert page.row("training") == ["training", "3.00 × 10¹⁵", "75.0 %", "4,000,000", "5 min 00 s"]
    assert page.row("Total") == ["Total", "4.00 × 10¹⁵", "100.0 %", "5,000,000", "6 min 00 s"]
    assert page.row("cleaning") == ["cleaning", "900", "97", "3", "1.5 s", "before, reused"]
    assert page.row("windows")[-1] == "in this run"
    assert page.row("empty") == ["empty text", "3"]
    assert page.row("swap") == ["swap", "900", "900", "12", ""]
    assert page.row(HOSTILE.split(maxsplit=1)[0])[1:] == ["900", "857", "0", "41 near copy, 2 wreck"]
    assert "Model FLOPs utilisation, median41.5 %" in page.text.replace("\n", "")
    assert page.row("decontaminated") == ["decontaminated", f"equal, held out of {HOSTILE}", "12"]
    assert page.row("filtered") == ["filtered", "none", "0"]
    assert "pool, bits per bytebefore 2.100, after 2.310" in page.text.replace("\n", "")
    assert "1,000,064" in page.text
    assert page.row("1,234") == ["1,234", f"loss {HOSTILE}", "the step was left out"]


def test_the_skill_of_every_score_is_shown(html, tmp_path):
    page = Page(html)
    assert page.row("compression") == ["compression", "0.46"]
    assert page.row("random") == ["random", "constant"]
    assert "1,024 windows of the test split" in " ".join(page.text.split())
    assert "Skill" not in written(tmp_path, write_report, BARE)


def test_texts_are_escaped_and_keep_their_spaces(html):
    assert HOSTILE in Page(html).text
    assert "<script" not in html
    assert "quick & <b>start</b>" in Page(html).text
    assert "\n\n  indented\n\n  text</pre>" in html  # a browser drops the first line feed of a <pre>
    assert "sum of a < b ? and more" in Page(html).text  # no UTF-8 for half a surrogate pair


def test_what_was_noted_is_shown(html, tmp_path):
    page = Page(html)
    assert "Notes" in page.text
    assert "the gradient cache is off from step 37 on" in page.text
    assert f"wandb is left out: {HOSTILE}" in page.text
    assert "Notes" not in Page(written(tmp_path, write_report, BARE)).text


def test_long_texts_are_cut_and_say_so(html):
    assert "x" * 4000 + " … (6,000 more characters)" in Page(html).text
    assert "x" * 4001 not in html


def test_parts_that_are_absent_leave_no_trace(tmp_path):
    html = written(tmp_path, write_report, BARE)
    assert_self_contained(html)
    page = Page(html)
    assert page.tags.count("svg") == 1  # the ledger
    absent = ("Stages", "Rejected", "Easiest", "Hardest", "Generated", "Versions", "baseline", "Divergences")
    for heading in absent:
        assert heading not in page.text
    assert "name: bare" in page.text


def test_stages_may_leave_out_whether_they_were_made_in_this_run(tmp_path):
    stages = [{key: value for key, value in stage.items() if key != "cached"} for stage in FULL.stages]
    page = Page(written(tmp_path, write_report, RunReport("s", SUMMARY, "", stages=stages)))
    assert page.row("cleaning") == ["cleaning", "900", "97", "3", "1.5 s"]
    assert "Made" not in page.text


def test_a_diverged_run_says_not_finite(tmp_path):
    held_out = {"bits_per_byte": None, "nats_per_token": math.nan, "perplexity": math.inf, "split": "test"}
    metrics = [
        {"step": 1, "tokens": 10, "seconds": 1.0, "loss": 9.0},
        {"step": 2, "tokens": 20, "seconds": 2.0, "loss": None},
    ]
    report = RunReport("diverged", {**SUMMARY, "held_out": held_out}, "", metrics=metrics)
    html = written(tmp_path, write_report, report)
    text = Page(html).text
    assert text.count("not finite") == 4 + 1 + 3  # title, three numbers; the comparison; three loss panels
    assert "the model is" not in text
    assert not re.search(r"\b(nan|inf)\b", html, flags=re.IGNORECASE)


def test_a_missing_summary_entry_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(KeyError, match="held_out"):
        write_report(tmp_path / "report.html", RunReport("broken", {"ledger": SUMMARY["ledger"]}, ""))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, BARE)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_same_report_same_bytes(tmp_path, html):
    write_report(tmp_path / "again.html", FULL)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_sweep_table_is_ranked_and_keeps_failures(sweep_html):
    page = Page(sweep_html)
    assert [row[0] for row in page.rows[1:]] == ["t3 winner", "off baseline", "t2", "t1"]
    assert page.row("t3") == [
        "t3 winner", "1.4000", "0.930 0.900 – 0.960", "1.00 × 10¹⁵", "1 min 30 s", "finished", "0.5", "0.002",
    ]  # fmt: skip
    assert page.row("t2")[-2:] == ["null", "0.001"]
    assert page.row("t1") == ["t1", "–", "–", "–", "3.0 s", "failed", "–", "0.3"]
    assert f"t1: diverged: {HOSTILE}" in page.text
    assert page.text.index("1.400") < page.text.index("1.500") < page.text.index("Trials")
    assert "name: winner" in page.text


def test_sweep_in_which_everything_failed(tmp_path):
    trials = [Trial("t1", {}, "failed", error="out of memory")]
    html = written(tmp_path, write_sweep_report, SweepReport("sad", trials))
    assert_self_contained(html)
    assert "t1: out of memory" in Page(html).text
    assert "svg" not in Page(html).tags
    assert "Recipe" not in Page(html).text


def test_an_unknown_winner_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'t9'"):
        write_sweep_report(tmp_path / "sweep.html", SweepReport("s", SWEEP.trials, winner="t9"))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_shows_the_headline_and_every_figure(tmp_path, html):
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --dump-dom"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *flags.split(), profile, path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert '<dd id="bits-per-byte">1.412</dd>' in dom
    assert dom.count("<svg") == 9
    assert dom.count("<figure") == 6
    assert "alert(1)" in dom
    assert "<script" not in dom
    assert_self_contained(dom)
