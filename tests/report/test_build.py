import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_samples import inputs, losses, record, results, trajectory

from ehrwear_jax.report import paper
from ehrwear_jax.report import result_records as rec
from ehrwear_jax.report.build import build_report, report_page
from ehrwear_jax.report.figures import COLORS
from ehrwear_jax.report.sections import loss_curves

CSV = "data:text/csv;charset=utf-8;base64,"
FILES = ("report.html", "report.md", "results.json")
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags, ids, references and text; `faults` lists tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.faults, self.ids, self.refs, self.text = [], [], [], [], []
        self.tags = set()
        self.feed(text)
        self.close()
        self.faults += self.stack

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.refs.append(value)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = build_report(inputs(), tmp_path_factory.mktemp("report") / "new" / "folder")
    assert path.name == "report.html"
    return path.parent


@pytest.fixture(scope="module")
def html(built):
    return (built / "report.html").read_text(encoding="utf-8")


def _visible(page):
    return " ".join(" ".join(page.text).split())


def test_only_the_files_that_are_promised_are_left(built):
    assert sorted(p.name for p in built.iterdir()) == sorted((*FILES, "tables"))
    assert {p.suffix for p in (built / "tables").iterdir()} == {".csv", ".tex"}


def test_html_is_well_formed_with_unique_ids_and_anchors_that_exist(html):
    page = Page(html)
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))
    assert {r[1:] for r in page.refs if not r.startswith(CSV)} <= set(page.ids)
    assert html.startswith("<!DOCTYPE html>") and "viewport" in html


def test_page_loads_nothing(html):
    page = Page(html)
    assert all(r.startswith(("#", CSV)) for r in page.refs)
    assert not page.tags & {"link", "img", "iframe", "object", "image"}
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML|document\.write|src\b", script)
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_every_table_can_be_taken_along(built, html):
    """Each table of the page is a link to itself as CSV; those with a name are the files beside the page."""
    links = dict(re.findall(r'download="([^"]+)" href="' + re.escape(CSV) + '([^"]+)"', html))
    assert html.count('<figure class="table">') == html.count('class="download"') > 5
    files = {p.name: p.read_text(encoding="utf-8") for p in (built / "tables").glob("*.csv")}
    assert set(files) <= set(links)
    assert all(base64.b64decode(links[name]).decode() == text for name, text in files.items())
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.csv", name) for name in links)


def test_every_colour_has_a_value_for_light_and_for_dark(html):
    used = set(re.findall(r"var\(--(\w+)", html)) - {"font"}
    assert used <= set(COLORS)
    assert all(html.count(f"--{name}:") == 2 for name in used)


def test_user_text_is_escaped(html):
    assert "Joint model &lt;tiny&gt;" in html and "<tiny>" not in html
    assert "people &amp; their watches" in html


def test_the_same_numbers_stand_in_all_three_files(built, html):
    records = json.loads((built / "results.json").read_text())
    assert records == results()
    text = _visible(Page(html))
    markdown = (built / "report.md").read_text()
    for r in records:
        number = rec.format_interval(r)
        assert number in text and number in markdown, r
        cells = " | ".join([r["task"], r["model"], r["metric"], number, f"{r['n']:,}"])
        assert f"| {cells} |" in markdown


def test_tables_hold_the_results_that_matter(built):
    markdown = (built / "report.md").read_text()
    for line in (
        "| **Hospitalization, 90 days** (n = 1,000, 120 positive (12.0%)) |  |  |",
        "| Joint model (EHR + wearable) | **0.810 [0.780, 0.840]** | **0.405 [0.365, 0.445]** |",
        "| _Oracle (true risk)_ | 0.860 [0.830, 0.890] | 0.430 [0.390, 0.470] |",
        "| Joint − Gradient boosting | AUROC | +0.010 [−0.004, +0.024] | includes zero | 0.170 |",
        "| **Mortality** (n = 2,000, 211 with the event (10.6%)) |  |",
        r"| followed \| long | 1,000 | 10 | record \< 30 days |",
    ):
        assert line in markdown, line
    assert (
        "- **Hospitalization, 90 days.** Joint: AUROC 0.810 [0.780, 0.840]; best other model, "
        "gradient boosting: 0.800 [0.770, 0.830]; oracle: 0.860 [0.830, 0.890]. Paired difference "
        "+0.010 [−0.004, +0.024] (includes zero)."
    ) in markdown
    used = set(re.findall(r"\[\^(\w+)\](?!:)", markdown))
    defined = re.findall(r"^\[\^(\w+)\]:", markdown, flags=re.MULTILINE)
    assert used == set(defined) and len(defined) == len(used) >= 8


def test_the_same_inputs_give_the_same_bytes(built, tmp_path):
    build_report(inputs(), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes(), name


EMPTY = {"results": [], "losses": {}, "predictions": {}, "trajectories": [], "cohort": [],
         "facts": {}, "notes": []}  # fmt: skip
MISSING = {
    "results": ("No result was evaluated", "No binary outcome", "no C-index",
                "There are no results", "No paired difference", "No Brier score"),
    "losses": ("No losses of a pretraining",),
    "predictions": ("No predicted probabilities",),
    "trajectories": ("No patient's trajectory",),
    "cohort": ("No counts of the cohort",),
    "facts": ("No facts of the run",),
    "notes": ("No notes were added",),
}  # fmt: skip


def test_what_is_missing_is_said(tmp_path, html):
    text = build_report(inputs(**EMPTY), tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.faults == []
    for sentences in MISSING.values():
        for sentence in sentences:
            assert sentence in " ".join(page.text), sentence
            assert sentence not in html
    assert re.findall(r'<section id="(\w+)"', text) == [
        x for x in re.findall(r'<section id="(\w+)"', html) if x != "definitions"
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_parts_may_be_absent(tmp_path):
    records = [r for r in results() if r["model"] != "oracle" and r["metric"] in ("auroc", "brier")]
    records.append(record("late_fusion", value=None, lo=None, hi=None))
    few = inputs(results=records, trajectories=[trajectory(8, with_signal=False, event_time_E=[],
                 event_label_E=[], prediction_time=None, outcome="")])  # fmt: skip
    text = _visible(Page(build_report(few, tmp_path).read_text(encoding="utf-8")))
    assert "There is no oracle: true" in text
    assert "no C-index" in text
    assert "This patient has no wearable signal" in text
    assert "no events in this span" in text
    assert "outcome: not stated" in text
    assert "Late fusion –" in text  # an undefined number keeps its line
    assert json.loads((tmp_path / "results.json").read_text())[-1]["value"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"results": [record(value="high")]}, "results record 0 .*value must be a number"),
        ({"dataset": "other"}, "dataset is 'simulated', expected 'other'"),
        ({"predictions": {"t": {"joint": (np.array([0, 2]), np.array([0.1, 0.2]))}}},
         "predictions of 'joint' on 't': an outcome is neither 0 nor 1"),
        ({"predictions": {"t": {"joint": (np.array([0, 1]), np.array([0.1, 1.2]))}}},
         "a probability lies outside"),
        ({"predictions": {"t": {"joint": (np.array([0, 1]), np.array([0.1, np.nan]))}}},
         "a probability lies outside"),
        ({"predictions": {"t": {"joint": (np.array([0, 1]), np.array([0.1]))}}}, "do not match"),
        ({"losses": {"joint": [{"loss/total": 1.0}]}}, "metrics of model 'joint', line 0: no step"),
        ({"losses": {"joint": [{"step": 1, "loss/total": "x"}]}}, "is 'x', not a number"),
        ({"cohort": [{"step": "all"}]}, "cohort step 0 .* lacks n"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        build_report(inputs(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loss_curves_keep_finite_values_in_order_of_steps():
    nan = float("nan")
    lines = [{"step": 2, "loss/total": 1.0}, {"step": 1, "loss/total": nan, "loss/x": None},
             {"step": 0, "loss/total": 3, "learning_rate": 0.1, "grad_norm": 5}]  # fmt: skip
    curves, skipped = loss_curves({"joint": lines})
    assert list(curves) == ["loss/total", "learning_rate"] and skipped == 2
    np.testing.assert_array_equal(curves["loss/total"]["joint"], [[0, 2], [3, 1]])
    curves, _ = loss_curves(losses())
    assert list(curves) == [
        "loss/total",
        "validation/loss/total",
        "loss/ehr_masked",
        "learning_rate",
    ]
    assert set(curves["loss/total"]) == {"joint", "ehr_only"}


def test_the_page_says_first_which_models_are_those_of_their_paper():
    added = {"joint": ("decayed counts", "next codes"), "joint_paper": (), "ehr_only": ("decayed counts", "next codes")}
    said = [b.text for b in paper.beside_the_paper(added)]
    assert said == [
        "As the paper describes it, with nothing added: joint_paper.",
        "Beside what the paper describes, ehr_only and joint have: decayed counts; next codes.",
    ]
    page = report_page(dataclasses.replace(inputs(), added=added), [])
    assert [b.text for b in page.sections[0].blocks[:2]] == said
    assert paper.beside_the_paper({}) == []
