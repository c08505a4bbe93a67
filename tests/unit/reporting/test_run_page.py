"""The page of a run: complete, escaped, self-contained, and read by a real browser."""

import math
import os
import re

import numpy as np
import pytest

from bkray.reporting import RunReport
from bkray.reporting.report import write_report

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
    rejects={"documents": {"empty text": 3}, "nearest": {"malformed JSON": 7}},
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


@pytest.fixture(scope="module")
def html(written):
    return written(write_report, FULL)


def test_run_report_is_one_self_contained_file(html, check_self_contained):
    check_self_contained(html)


def test_page_is_semantic(html, parse):
    page = parse(html)
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "name", "viewport") in page.attributes
    assert page.tags.count("h1") == 1
    assert page.tags.count("figure") == page.tags.count("figcaption") == 6
    assert page.tags.count("svg") == 10
    assert "th" in page.tags
    assert "title" in page.tags


def test_headline_comes_first_with_its_baselines_and_cost(html, parse):
    text = " ".join(parse(html).text.split())
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


def test_a_model_worse_than_counting_is_called_so(written, parse):
    summary = {**SUMMARY, "baselines": {"unigram": 1.2}}
    text = parse(written(write_report, RunReport("bad", summary, ""))).text
    assert "the model is 17.7 % higher" in text
    assert "3-gram" not in text


def test_tables(html, parse):
    page = parse(html)
    assert page.row("training") == ["training", "3.00 × 10¹⁵", "75.0 %", "4,000,000", "5 min 00 s"]
    assert page.row("Total") == ["Total", "4.00 × 10¹⁵", "100.0 %", "5,000,000", "6 min 00 s"]
    assert page.row("cleaning") == ["cleaning", "900", "97", "3", "1.5 s", "before, reused"]
    assert page.row("windows")[-1] == "in this run"
    assert page.row("documents") == ["documents", "empty text", "3"]
    assert page.row("nearest") == ["nearest", "malformed JSON", "7"]
    assert page.row("swap") == ["swap", "900", "900", "12", ""]
    assert page.row(HOSTILE.split(maxsplit=1)[0])[1:] == ["900", "857", "0", "41 near copy, 2 wreck"]
    assert "Model FLOPs utilisation, median41.5 %" in page.text.replace("\n", "")
    assert page.row("decontaminated") == ["decontaminated", f"equal, held out of {HOSTILE}", "12"]
    assert page.row("filtered") == ["filtered", "none", "0"]
    assert "pool, bits per bytebefore 2.100, after 2.310" in page.text.replace("\n", "")
    assert "1,000,064" in page.text
    assert page.row("1,234") == ["1,234", f"loss {HOSTILE}", "the step was left out"]


def test_the_skill_of_every_score_is_shown(html, written, parse):
    page = parse(html)
    assert page.row("compression") == ["compression", "0.46"]
    assert page.row("random") == ["random", "constant"]
    assert "1,024 windows of the test split" in " ".join(page.text.split())
    assert "Skill" not in written(write_report, BARE)


def test_texts_are_escaped_and_keep_their_spaces(html, parse):
    assert HOSTILE in parse(html).text
    assert "<script" not in html
    assert "quick & <b>start</b>" in parse(html).text
    assert "\n\n  indented\n\n  text</pre>" in html  # a browser drops the first line feed of a <pre>
    assert "sum of a < b ? and more" in parse(html).text  # no UTF-8 for half a surrogate pair


def test_what_was_noted_is_shown(html, written, parse):
    page = parse(html)
    assert "Notes" in page.text
    assert "the gradient cache is off from step 37 on" in page.text
    assert f"wandb is left out: {HOSTILE}" in page.text
    assert "Notes" not in parse(written(write_report, BARE)).text


def test_long_texts_are_cut_and_say_so(html, parse):
    assert "x" * 4000 + " … (6,000 more characters)" in parse(html).text
    assert "x" * 4001 not in html


def test_parts_that_are_absent_leave_no_trace(written, parse, check_self_contained):
    html = written(write_report, BARE)
    check_self_contained(html)
    page = parse(html)
    assert page.tags.count("svg") == 2  # the ledger: FLOPs and time
    absent = ("Stages", "Rejected", "Easiest", "Hardest", "Generated", "Versions", "baseline", "Divergences")
    for heading in absent:
        assert heading not in page.text
    assert "name: bare" in page.text


def test_stages_may_leave_out_whether_they_were_made_in_this_run(written, parse):
    stages = [{key: value for key, value in stage.items() if key != "cached"} for stage in FULL.stages]
    page = parse(written(write_report, RunReport("s", SUMMARY, "", stages=stages)))
    assert page.row("cleaning") == ["cleaning", "900", "97", "3", "1.5 s"]
    assert "Made" not in page.text


def test_a_diverged_run_says_not_finite(written, parse):
    held_out = {"bits_per_byte": None, "nats_per_token": math.nan, "perplexity": math.inf, "split": "test"}
    metrics = [
        {"step": 1, "tokens": 10, "seconds": 1.0, "loss": 9.0},
        {"step": 2, "tokens": 20, "seconds": 2.0, "loss": None},
    ]
    report = RunReport("diverged", {**SUMMARY, "held_out": held_out}, "", metrics=metrics)
    html = written(write_report, report)
    text = parse(html).text
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


def test_a_browser_shows_the_headline_and_every_figure(tmp_path, html, check_self_contained, in_browser):
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    dom = in_browser(path)
    assert '<dd id="bits-per-byte">1.412</dd>' in dom
    assert dom.count("<svg") == 10
    assert dom.count("<figure") == 6
    assert "alert(1)" in dom
    assert "<script" not in dom
    check_self_contained(dom)
