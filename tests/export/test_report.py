"""`report.html`: what it shows, that it shows the truth, and that nothing in it runs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from shutil import copytree

import pytest

from heed.bundle import Manifest, read_manifest
from heed.bundle.contract import Case, Finding, Report, read_contract
from heed.bundle.digests import REPORT, bundle_digest, check_digests
from heed.export.cases import TEXTS, TRIES, _image_cases
from heed.export.charts import axis_of, draw_rows, percent
from heed.export.report import report_page
from heed.export_verification import prove
from heed.model.config import ImagesConfig
from heed.server.engine.model import Model

EMPTY = {"meta", "br", "circle", "rect", "line", "path"}  # elements that end at once
MAY_LOAD = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background", "formaction"}


class Page(HTMLParser):
    """Refuses what is not well-formed, and remembers elements and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def classes(self, prefix: str) -> int:
        return sum((attributes.get("class") or "").startswith(prefix) for _, attributes in self.elements)


@pytest.fixture(scope="module")
def tiny_report(tiny_bundle: Path) -> str:
    return (tiny_bundle / REPORT).read_text("utf-8")


def test_it_is_well_formed_and_shows_every_case_with_its_error(tiny_bundle: Path, tiny_report: str) -> None:
    page = Page(tiny_report)
    findings = prove(tiny_bundle).findings
    for case in read_contract(tiny_bundle):
        worst = max(found.error for found in findings if found.case.removesuffix(" with attentions") == case.name)
        batch, length = case.outputs["last_hidden_state"].shape[:2]
        row = re.search(rf"<tr><td><code>{case.name}</code>.*?</tr>", tiny_report, re.DOTALL)
        assert row
        assert f"{worst:.1e}" in row[0]
        assert f"{batch} row{'s' * (batch > 1)} × {length}" in row[0]
        assert ("✓" in row[0]) == case.at_start
    assert bundle_digest(tiny_bundle) in page.text
    assert "✓ equal to the reference" in page.text
    assert "✗" not in page.text


def test_it_has_a_mark_for_every_comparison_in_both_pictures(tiny_bundle: Path, tiny_report: str) -> None:
    findings = prove(tiny_bundle).findings
    outputs = {found.output for found in findings}
    assert Page(tiny_report).classes("mark") == 2 * len(findings) + len(outputs)  # and those of the legend


def test_it_loads_nothing_and_runs_nothing(tiny_report: str) -> None:
    page = Page(tiny_report)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form", "foreignobject"}
        assert not attributes.keys() & MAY_LOAD
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in tiny_report
    assert "@import" not in tiny_report
    (policy,) = [each["content"] for tag, each in page.elements if tag == "meta" and "http-equiv" in each]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_same_findings_give_the_same_page(tiny_bundle: Path, tiny_report: str) -> None:
    """No time, no path."""
    report = report_page(
        read_manifest(tiny_bundle), bundle_digest(tiny_bundle), read_contract(tiny_bundle), {"fp32": prove(tiny_bundle)}
    )
    assert report == tiny_report


def test_nothing_depends_on_it(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    (bundle / REPORT).write_text("<h1>not what was measured</h1>")
    check_digests(bundle)
    assert Model(bundle, "cpu").digest == bundle_digest(tiny_bundle)
    (bundle / REPORT).unlink()
    check_digests(bundle)
    assert Report(list(Model(bundle, "cpu").check_contract(everything=False))).holds


NASTY = "</td><script>alert('1')</script>&\"$name"


def nasty(manifest: Manifest) -> Manifest:
    outputs = [spec.model_copy(update={"help": NASTY}) for spec in manifest.outputs]
    provenance = manifest.provenance.model_copy(update={"command": NASTY, "source": {NASTY: NASTY}, "family": NASTY})
    changes = {"labels": [NASTY], "outputs": outputs, "provenance": provenance, "name": NASTY}
    return manifest.model_copy(update=changes)


def nasty_cases(cases: Sequence[Case]) -> list[Case]:
    return [replace(case, name=NASTY, inputs={"text": [NASTY]}) for case in cases[:2]]  # type: ignore[dict-item]


def test_names_labels_and_texts_are_escaped(tiny_bundle: Path, tiny_report: str) -> None:
    findings = [Finding(NASTY, NASTY, 1e-6, 1e-5)]
    page = report_page(
        nasty(read_manifest(tiny_bundle)), NASTY, nasty_cases(read_contract(tiny_bundle)), {NASTY: Report(findings)}
    )
    read = Page(page)
    assert not any(tag == "script" for tag, _ in read.elements)
    assert {tag for tag, _ in read.elements} <= {tag for tag, _ in Page(tiny_report).elements}
    for name, attributes in read.elements:
        assert not any(attribute.startswith("on") for attribute in attributes), name
    assert read.text.count(NASTY) >= 10


def test_what_does_not_hold_is_shown_so(tiny_bundle: Path) -> None:
    cases = read_contract(tiny_bundle)
    findings = [Finding(cases[0].name, "last_hidden_state", 3e-3, 1e-5)]
    findings += [Finding(case.name, "last_hidden_state", 1e-7, 1e-5) for case in cases[1:-1]]
    page = report_page(read_manifest(tiny_bundle), "sha256:1", cases, {"fp32": Report(findings)})
    assert "✗ not equal to the reference" in Page(page).text
    assert "✓ equal" not in page
    assert page.count('class="number wrong"') == 1
    assert Page(page).text.count("not compared") == 1


def test_precisions_are_shown_side_by_side(tiny_bundle: Path) -> None:
    cases = read_contract(tiny_bundle)
    fp32 = [Finding(case.name, "last_hidden_state", 1e-7, 1e-5) for case in cases]
    int8 = [Finding(case.name, "last_hidden_state", 2e-3, 1e-2, measure="cosine") for case in cases]
    page = report_page(read_manifest(tiny_bundle), "sha256:1", cases, {"fp32": Report(fp32), "int8": Report(int8)})
    assert page.count('<div class="tile holds">') == 2
    assert page.count('<svg viewBox="0 0 940') == 3  # all in one, and each by itself
    assert f"last_hidden_state in {cases[0].name}: 2.0e-03 (1 - cosine), 1e-02 allowed" in page


def test_a_precision_that_no_machine_has_proven_is_shown_so(tiny_bundle: Path, tiny_report: str) -> None:
    manifest = read_manifest(tiny_bundle)
    half = manifest.graphs[0].model_copy(update={"precision": "fp16", "proven": False})
    manifest = manifest.model_copy(update={"graphs": [*manifest.graphs, half]})
    page = report_page(manifest, "sha256:1", read_contract(tiny_bundle), {"fp32": prove(tiny_bundle)})
    assert "fp16 not proven yet" in Page(page).text
    assert "not proven yet" not in tiny_report


def finding(error: float, budget: float = 1e-5) -> Finding:
    return Finding("a", "logits", error, budget)


def test_each_step_on_the_axis_is_ten_times_the_error() -> None:
    axis = axis_of([finding(1e-9), finding(3e-6)])
    assert axis.lowest == -4
    places = [axis.x_of(used) for used in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    steps = {round(right - left, 6) for left, right in pairwise(places)}
    assert len(steps) == 1
    assert axis.x_of(0) < places[0]
    assert axis.x_of(2.0) > axis.x_of(1.0)


def test_the_axis_reaches_to_the_smallest_error_but_not_beyond_reason() -> None:
    assert axis_of([finding(2e-12)]).lowest == -7
    assert axis_of([finding(1e-30)]).lowest == -9
    assert axis_of([finding(0.0)]).lowest == -4


def test_the_axis_names_errors_where_all_have_one_budget_and_shares_of_it_where_not() -> None:
    same = axis_of([finding(1e-7), finding(1e-6)])
    assert [same.name(decade) for decade in (-2, -1, 0)] == ["1e-07", "1e-06", "1e-05"]
    different = axis_of([finding(1e-7), finding(1e-6, budget=1e-2)])
    assert [different.name(decade) for decade in (-4, -3, -2, -1, 0)] == ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"]


def test_an_error_as_large_as_its_budget_lies_on_the_line() -> None:
    drawn = draw_rows([("a", [finding(1e-5)])], ["logits"], "title")
    line = re.search(r'class="budget" x1="([\d.]+)"', drawn)
    mark = re.search(r'<circle cx="([\d.]+)"', drawn)
    assert line
    assert mark
    assert line[1] == mark[1]


@pytest.mark.parametrize(
    ("used", "expected"),
    [(0, "0 %"), (1e-6, "< 0.01 %"), (0.0021, "0.21 %"), (0.034, "3.4 %"), (0.24, "24 %"), (1.0, "100 %")],
)
def test_shares_of_the_budget_are_readable(used: float, expected: str) -> None:
    assert percent(used) == expected


def test_every_case_says_what_it_tries(tiny_bundle: Path, tiny_roberta_bundle: Path) -> None:
    images = ImagesConfig(channels=3, height=8, image_width=8, patch=4)
    names = {case.name for bundle in (tiny_bundle, tiny_roberta_bundle) for case in read_contract(bundle)}
    names |= {name for name, _ in _image_cases(images)}
    assert {name for name in names if not re.fullmatch(r"text_\d+", name)} <= TRIES.keys()


def test_texts_speak_for_themselves(tiny_report: str) -> None:
    assert any(text in Page(tiny_report).text for text in TEXTS if len(text) > 20)
