"""What counts as equal, by numbers written down by hand."""

import zipfile
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heed.bundle import BundleError, Manifest
from heed.bundle.contract import (
    BUDGETS,
    CONTRACT,
    START_TOKENS,
    Budget,
    Case,
    Finding,
    Report,
    StoredCases,
    check,
    check_complete,
    cosine_distance,
    error_of,
    has_budget,
    read_contract,
    wide_budgets,
    write_contract,
)
from heed.bundle.manifest import Image
from heed.bundle.sequence_packing import Arrays
from tests.server.support import SPECS, manifest_of

CPU = "CPUExecutionProvider"
REFERENCE = np.array([[0.5, -0.25, 0.0]])


def case_of(reference: np.ndarray, name: str = "a") -> Case:
    return Case(name, {"x": np.array([1])}, {"y": reference}, at_start=True)


def finding_of(
    answer: Callable[[Arrays, list[str]], Arrays] | np.ndarray, reference: np.ndarray = REFERENCE
) -> Finding:
    answered = answer if callable(answer) else lambda *_: {"y": answer}
    (finding,) = check([case_of(reference)], answered, "fp32", CPU)
    return finding


def test_the_budgets_are_what_the_product_promises() -> None:
    cuda = "CUDAExecutionProvider"
    assert {key: (each.vectors, each.unit_length, each.scores) for key, each in BUDGETS.items()} == {
        ("fp32", CPU): (Budget(1e-5), Budget(1e-5), Budget(1e-5)),
        ("fp32", cuda): (Budget(1e-5), Budget(1e-5), Budget(1e-5)),
        ("fp16", cuda): (Budget(1e-2), Budget(1e-4, "cosine"), Budget(1e-2)),
        ("int8", CPU): (Budget(1e-2, "cosine"), Budget(5e-3, "cosine"), Budget(0.1)),
    }
    assert has_budget("int8", CPU)
    assert not has_budget("int8", cuda)
    assert not has_budget("fp16", CPU)


@pytest.mark.parametrize(
    ("answer", "reference", "error"),
    [
        ([0.5, -0.25], [0.5, -0.25], 0.0),
        ([0.5, -0.5], [0.5, -0.25], 0.25),  # absolute below 1
        ([0.75, 0.0], [0.5, -0.25], 0.25),
        ([8.0, 1.0], [8.0, 3.0], 0.25),  # a share of the largest value above
        ([-8.0, 3.0], [-8.0, 1.0], 0.25),  # its sign does not matter
        ([100.0, 1.0], [1.0, 1.0], 99.0),  # nor does the answer's size
        ([], [], 0.0),
    ],
)
def test_errors_are_shares_of_the_largest_reference_value(
    answer: list[float], reference: list[float], error: float
) -> None:
    assert error_of(np.array(answer, np.float32), np.array(reference)) == error


def test_errors_are_computed_in_float64() -> None:
    """2²⁴ + 1 is no float32: rounded to one the difference would be 0."""
    assert error_of(np.array([2.0**24], np.float32), np.array([2.0**24 + 1])) == pytest.approx(2.0**-24)


def test_an_error_of_just_the_budget_holds_and_the_next_larger_one_does_not() -> None:
    edge = BUDGETS["fp32", CPU].vectors.limit
    assert finding_of(np.array([[edge]]), np.zeros((1, 1))).holds
    assert not finding_of(np.array([[np.nextafter(edge, 1)]]), np.zeros((1, 1))).holds


def test_the_right_answer_holds() -> None:
    finding = finding_of(REFERENCE.astype(np.float32))
    assert finding == Finding("a", "y", 0.0, 1e-5)
    assert finding.holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_infinitely_wrong(value: float) -> None:
    answer = REFERENCE.copy()
    answer[0, 1] = value
    for finding in (finding_of(answer), finding_of(REFERENCE, reference=answer), finding_of(answer, reference=answer)):
        assert finding.error == np.inf
        assert not finding.holds
        assert "NaN or infinity" in finding.reason


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1), (2, 3), (1, 2), ()])
def test_another_shape_is_infinitely_wrong_even_if_it_broadcasts(shape: tuple[int, ...]) -> None:
    finding = finding_of(np.zeros(shape), np.zeros((1, 3)))
    assert finding.error == np.inf
    assert finding.reason == f"shape {shape}, expected (1, 3)"


def test_a_missing_output_is_infinitely_wrong() -> None:
    finding = finding_of(lambda *_: {"z": REFERENCE})
    assert (finding.error, finding.reason) == (np.inf, "no y in the answer")


def test_an_answer_that_raises_is_a_finding_and_the_next_case_is_checked() -> None:
    def answer(inputs: Arrays, outputs: list[str]) -> Arrays:
        assert outputs == ["y"]
        if inputs["x"][0] == 1:
            raise RuntimeError("out of luck")
        return {"y": REFERENCE}

    cases = [case_of(REFERENCE), Case("b", {"x": np.array([2])}, {"y": REFERENCE}, at_start=False)]
    first, second = check(cases, answer, "fp32", CPU)
    assert (first.case, first.error, first.reason) == ("a", np.inf, "out of luck")
    assert second == Finding("b", "y", 0.0, 1e-5)


def test_every_output_is_compared() -> None:
    case = Case("a", {}, {"y": REFERENCE, "z": REFERENCE}, at_start=True)
    findings = list(check([case], lambda *_: {"y": REFERENCE, "z": REFERENCE + 1}, "fp32", CPU))
    assert [(finding.output, finding.holds) for finding in findings] == [("y", True), ("z", False)]


LOGITS = np.array([[0.0, 1.0, 0.5], [3.0, -1.0, 3.0 - 1.5e-4], [2.0, 0.0, 0.0]])  # the second row is nearly a draw
LABELS = np.array(["b", "a", "a"])


def labels_finding(answer: list[str], logits: np.ndarray = LOGITS, reference: np.ndarray = LABELS) -> Finding:
    case = Case("a", {}, {"logits": logits, "labels": reference}, at_start=True)
    _, finding = check([case], lambda *_: {"logits": logits, "labels": np.array(answer)}, "fp32", CPU)
    assert finding.output == "labels"
    return finding


def test_the_right_labels_hold() -> None:
    assert labels_finding(["b", "a", "a"]) == Finding("a", "labels", 0.0, 1e-5)


def test_a_wrong_label_is_named() -> None:
    finding = labels_finding(["b", "a", "c"])
    assert not finding.holds
    assert finding.reason == "labels[2] is 'c', expected 'a'"


def test_labels_that_the_budget_lets_win_are_not_compared() -> None:
    """The best two lie 1.5e-4 apart: more than 2 * 1e-5 * 3, less than that of logits a hundred times as large."""
    assert not labels_finding(["b", "c", "a"]).holds
    wide = np.concatenate([LOGITS, [[300.0, 0.0, 0.0]]])
    assert labels_finding(["b", "c", "a", "a"], wide, np.array(["b", "a", "a", "a"])).holds
    assert not labels_finding(["b", "", "a", "a"], wide, np.array(["b", "a", "a", "a"])).holds
    assert not labels_finding(["c", "c", "a", "a"], wide, np.array(["b", "a", "a", "a"])).holds


def test_padding_has_no_label() -> None:
    logits, reference = np.zeros((1, 2, 3)), np.array([["", "a"]])
    logits[0, 1, 0] = 1
    case = Case("a", {}, {"logits": logits, "labels": reference}, at_start=True)
    for label, holds in (("", True), ("a", False)):
        answer = {"logits": logits, "labels": np.array([[label, "a"]])}
        assert [finding.holds for finding in check([case], lambda *_, a=answer: a, "fp32", CPU)] == [True, holds]


# Cosines, and what each output is allowed


@pytest.mark.parametrize(
    ("answer", "reference", "distance"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        ([[30.0, 40.0]], [[3.0, 4.0]], 0.0),  # a cosine does not know lengths
        ([[4.0, 0.0]], [[0.0, 3.0]], 1.0),
        ([[-3.0, 0.0]], [[3.0, 0.0]], 2.0),
        ([[3.0, 4.0]], [[5.0, 0.0]], 0.4),
        ([[5.0, 0.0], [3.0, 4.0]], [[5.0, 0.0], [5.0, 0.0]], 0.4),  # the worst vector counts
        ([[0.0, 0.0]], [[5.0, 0.0]], 0.5),  # zeros have no direction
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0),
        ([[0.6, 0.0]], [[0.0, 0.0]], 0.18),
        ([[0.1, 0.2]], [[0.2, 0.1]], 0.01),  # short: half the squared distance, though its cosine is 0.8
        (np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
    ],
)
def test_cosines_are_of_each_vector_and_short_ones_count_as_they_are(
    answer: list[list[float]], reference: list[list[float]], distance: float
) -> None:
    assert cosine_distance(np.array(answer), np.array(reference)) == pytest.approx(distance, abs=1e-15)


def test_a_small_angle_is_not_lost_in_rounding() -> None:
    """1 - cosine of an angle of 1e-10 is 5e-21, where 1 - np.cos(1e-10) is 0."""
    assert cosine_distance(np.array([[10.0, 1e-9]]), np.array([[10.0, 0.0]])) == pytest.approx(5e-21)


TURNED = np.array([[10.0, 1.0]])  # by 0.1 from the first axis: 1 - cosine is 5e-3, the largest difference 0.1 of scale
AXIS = np.array([[10.0, 0.0]])


@pytest.mark.parametrize(
    ("output", "answer", "reference", "budget"),
    [
        ("last_hidden_state", TURNED, AXIS, Budget(1e-2, "cosine")),
        ("logits", TURNED, AXIS, Budget(1e-2, "cosine")),
        ("sentence_embedding", TURNED, AXIS, Budget(1e-2, "cosine")),
        ("sentence_embedding", TURNED / 10, AXIS / 10, Budget(5e-3, "cosine")),
        ("logits", AXIS[:, :1], AXIS[:, :1] + 1, Budget(0.1)),
        ("attentions", TURNED / 20, AXIS / 20, Budget(1e-2, "cosine")),
    ],
)
def test_what_an_output_holds_decides_its_budget(
    output: str, answer: np.ndarray, reference: np.ndarray, budget: Budget
) -> None:
    case = Case("a", {}, {output: reference}, at_start=True)
    (finding,) = check([case], lambda *_: {output: answer}, "int8", CPU)
    assert (finding.budget, finding.measure) == (budget.limit, budget.measure)
    assert finding.error == budget.used(answer, reference) > 0
    assert finding.holds
    (finding,) = check([case], lambda *_: {output: -answer}, "int8", CPU)
    assert not finding.holds


def test_an_answer_that_cannot_be_used_has_the_measure_of_its_output() -> None:
    case = Case("a", {}, {"last_hidden_state": AXIS}, at_start=True)
    for answer in ({}, {"last_hidden_state": AXIS[0]}, {"last_hidden_state": AXIS * np.nan}):
        (finding,) = check([case], lambda *_, given=answer: given, "int8", CPU)
        assert (finding.error, finding.budget, finding.measure) == (np.inf, 1e-2, "cosine")


@pytest.mark.parametrize(
    ("logits", "decided"),
    [
        ([[2.0, 0.0, -0.1]], True),  # √(2 * 0.01) of the length is 0.28, and √2 of that 0.4
        ([[2.0, 1.61, 0.0]], False),
        ([[0.3, 0.0, 0.0]], True),  # short: as if its length were 1, 0.2 is what can be made up
        ([[0.1, 0.0, 0.0]], False),
    ],
)
def test_labels_are_compared_where_a_cosine_decides(logits: list[list[float]], decided: bool) -> None:
    reference = {"logits": np.array(logits), "labels": np.array(["a"])}
    case = Case("a", {}, reference, at_start=True)
    _, finding = check([case], lambda *_: reference | {"labels": np.array(["b"])}, "int8", CPU)
    assert finding.holds is not decided
    assert (finding.budget, finding.measure) == (1e-2, "cosine")


def made(output: str) -> np.ndarray:
    """Of the right size: zeros, or empty texts."""
    spec = SPECS[output]
    return np.zeros([abs(size) for size in spec.shape], "U1" if spec.datatype == "BYTES" else np.float64)


def cases_of(*requests: tuple[Arrays, list[str]]) -> list[Case]:
    return [
        Case(str(number), inputs, {name: made(name) for name in outputs}, at_start=True)
        for number, (inputs, outputs) in enumerate(requests)
    ]


STATES = ["last_hidden_state"]
LONGEST_IDS = {"input_ids": np.full((1, 40), 99)}
LONGEST_FRAMES = {"features": np.zeros((1, 40, 2))}
PIXELS = {"pixel_values": np.zeros((1, 3, 4, 6))}
SIZE = Image(channels=3, height=4, width=6, patch=2)


@pytest.mark.parametrize(
    ("manifest", "request_"),
    [
        (manifest_of("input_ids"), LONGEST_IDS),
        (manifest_of("features"), LONGEST_FRAMES),
        (manifest_of("pixel_values", image=SIZE, length=7), PIXELS),
    ],
)
def test_a_contract_of_every_kind_of_input_can_be_complete(manifest: Manifest, request_: Arrays) -> None:
    check_complete(manifest, cases_of((request_, STATES)))


@pytest.mark.parametrize(
    ("manifest", "request_", "message"),
    [
        (manifest_of("features", length=41), LONGEST_FRAMES, "tries 40 tokens at most, the manifest allows 41"),
        (manifest_of("pixel_values", image=SIZE, length=8), PIXELS, "tries 7 tokens at most, the manifest allows 8"),
        (manifest_of("input_ids"), {"input_ids": np.full((1, 40), 98)}, "tries ids up to 98, the manifest allows 99"),
    ],
)
def test_what_no_case_tries_is_refused(manifest: Manifest, request_: Arrays, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_complete(manifest, cases_of((request_, STATES)))


def test_every_plain_output_is_in_every_case_and_attentions_in_one() -> None:
    outputs = ["logits", "labels", "tokens", "offsets", "attentions"]
    manifest = manifest_of("input_ids", outputs=outputs)
    plain, all_ = (LONGEST_IDS, ["logits", "labels"]), (LONGEST_IDS, ["logits", "labels", "attentions"])
    check_complete(manifest, cases_of(plain, all_))
    with pytest.raises(BundleError, match="no case has attentions"):
        check_complete(manifest, cases_of(plain, plain))
    with pytest.raises(BundleError, match="case 1 has no labels"):
        check_complete(manifest, cases_of(all_, (LONGEST_IDS, ["logits"])))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"input_ids": np.zeros(3, np.int64)}, {}, r"input_ids of case a is int64 \[3\], .* INT64 \[-1, -1\]"),
        ({"input_ids": np.array([["99"]])}, {}, r"input_ids of case a is <U2 \[1, 1\], .* INT64"),
        ({"features": np.zeros(3)}, {}, "case a has features, which the manifest does not declare"),
        ({}, {"logits": np.array([[["x"] * 3]])}, r"logits of case a is <U1 \[1, 1, 3\], .* FP32"),
        ({}, {"logits": np.array(1.0)}, r"logits of case a is float64 \[\], .* FP32 \[-1, -1, 3\]"),
        ({}, {"logits": np.zeros((1, 1, 2))}, r"logits of case a is float64 \[1, 1, 2\]"),
        ({}, {"labels": np.array([["a", "b"]])}, r"case a has labels \[1, 2\] and logits \[1, 1, 3\]"),
        ({}, {"labels": np.zeros((1, 1))}, r"labels of case a is float64 \[1, 1\], .* BYTES"),
    ],
)
def test_arrays_that_are_not_as_the_manifest_says_are_refused(inputs: Arrays, outputs: Arrays, message: str) -> None:
    manifest = manifest_of("input_ids", outputs=["logits", "labels"])
    case = Case("a", inputs or LONGEST_IDS, {"logits": made("logits"), "labels": made("labels")} | outputs, True)
    with pytest.raises(BundleError, match=message):
        check_complete(manifest, [case])


def test_a_row_without_tokens_is_left_to_the_comparison() -> None:
    empty = {"input_ids": np.zeros((1, 0), np.int64)}
    check_complete(manifest_of("input_ids"), cases_of((LONGEST_IDS, STATES), (empty, STATES)))


def test_attentions_that_the_manifest_does_not_offer_do_no_harm() -> None:
    check_complete(manifest_of("input_ids"), cases_of((LONGEST_IDS, [*STATES, "attentions"])))


def test_labels_without_the_logits_that_decide_them_are_refused() -> None:
    """The manifest declares neither, so nothing says that the logits are missing."""
    with pytest.raises(BundleError, match="case 0 has labels, which the manifest does not declare"):
        check_complete(manifest_of("input_ids"), cases_of((LONGEST_IDS, [*STATES, "labels"])))


def test_a_report_holds_only_if_every_finding_does() -> None:
    good, bad = Finding("a", "y", 1e-6, 1e-5), Finding("b", "y", 2e-5, 1e-5)
    assert Report([good, good]).holds
    assert not Report([good, bad]).holds
    assert not Report([bad, good]).holds


def test_only_float32_is_called_equal() -> None:
    """Its budget is that of rounding; int8's is a hundred times wider."""

    def verdict(error: float, precision: str) -> str:
        return Report([Finding("a", "logits", error, 1e-2, precision=precision)]).verdict

    assert verdict(0.0, "fp32") == "equal to the reference"
    assert verdict(0.1, "fp32") == "not equal to the reference"
    assert verdict(0.0, "int8") == "within the budget of int8"
    assert verdict(0.1, "int8") == "not within the budget of int8"


def test_nothing_compared_does_not_hold() -> None:
    assert not Report([]).holds


def test_the_worst_finding_uses_most_of_its_own_budget() -> None:
    near, far = Finding("a", "y", 9e-6, 1e-5), Finding("b", "y", 2e-5, 1e-3)
    unusable = Finding("c", "y", np.inf, 1e-5, "no y in the answer")
    assert Report([near, far]).worst is near
    assert Report([far, near]).worst is near
    assert Report([near, unusable, far]).worst is unusable


def test_a_finding_names_output_case_and_budget() -> None:
    assert str(Finding("a", "y", 2.34e-5, 1e-5)) == "y in case a is off by 2.3e-05, 1e-05 is allowed"
    assert "y in case a has no usable answer (too late)" in str(Finding("a", "y", np.inf, 1e-5, "too late"))
    turned = Finding("a", "y", 0.0123, 1e-2, measure="cosine")
    assert str(turned) == "y in case a is off by 1.2e-02, 1e-02 of 1 - cosine is allowed"


@pytest.mark.parametrize(
    ("precision", "provider"), [("int4", CPU), ("fp16", CPU), ("int8", "CUDAExecutionProvider"), ("fp32", "none")]
)
def test_what_has_no_budget_is_not_compared(precision: str, provider: str) -> None:
    with pytest.raises(BundleError, match=f"{precision} is not for the {provider}"):
        list(check([case_of(REFERENCE)], lambda *_: {"y": REFERENCE}, precision, provider))


def test_findings_know_their_precision_and_can_be_told_apart() -> None:
    (exact,) = check([case_of(REFERENCE)], lambda *_: {"y": REFERENCE}, "fp32", CPU)
    (turned,) = check([case_of(REFERENCE)], lambda *_: {"y": -REFERENCE}, "int8", CPU)
    assert (exact.precision, turned.precision) == ("fp32", "int8")
    assert str(turned).startswith("y in int8 in case a is off by")
    parts = Report([exact, turned]).by_precision()
    assert {precision: part.findings for precision, part in parts.items()} == {"fp32": [exact], "int8": [turned]}
    assert parts["fp32"].holds
    assert not parts["int8"].holds


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    texts = np.array(["", "naïve café", "早上好", "👩‍🔬 🚀", "a\nb\t c "])
    cases = [
        Case("texts", {"text": texts}, {"y": np.array([[1 / 3, -np.pi]])}, at_start=False),
        Case("ids", {"input_ids": np.array([[1, 2]]), "mask": np.array([[1, 0]])}, {"y": REFERENCE}, at_start=True),
    ]
    write_contract(tmp_path, cases)
    read = read_contract(tmp_path)
    assert [(case.name, case.at_start) for case in read] == [("texts", False), ("ids", True)]
    for before, after in zip(cases, read, strict=True):
        assert before.inputs.keys() == after.inputs.keys()
        assert before.outputs.keys() == after.outputs.keys()
        assert all(np.array_equal(array, after.inputs[name]) for name, array in before.inputs.items())
        assert all(array.tobytes() == after.outputs[name].tobytes() for name, array in before.outputs.items())
        assert all(array.dtype == np.float64 for array in after.outputs.values())
    assert read[0].inputs["text"].tolist() == texts.tolist()
    assert read[1].inputs["input_ids"].dtype == np.int64


def test_stored_cases_are_those_of_the_file_that_was_opened(tmp_path: Path) -> None:
    cases = [
        Case("slow", {"x": np.array([[1.0]])}, {"y": REFERENCE}, at_start=False),
        Case("quick", {"x": np.array([[2.0]])}, {"y": REFERENCE}, at_start=True),
        Case("quick too", {"x": np.array([[3.0]])}, {"y": REFERENCE}, at_start=True),
    ]
    write_contract(tmp_path, cases)
    stored, at_start = StoredCases(tmp_path), StoredCases(tmp_path, at_start=True)
    (tmp_path / CONTRACT).rename(tmp_path / "old")
    write_contract(tmp_path, [replace(cases[1], inputs={"x": np.array([[4.0]])})])
    assert [case.name for case in stored] == ["slow", "quick", "quick too"]
    assert [case.name for case in at_start] == ["quick", "quick too"]
    assert (len(at_start), at_start[1].inputs["x"].item(), at_start[-2:][0].inputs["x"].item()) == (2, 3.0, 2.0)


def test_a_folder_without_a_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"has no {CONTRACT}"):
        read_contract(tmp_path)


def test_a_contract_that_is_larger_in_memory_than_on_disk_is_refused(tmp_path: Path) -> None:
    """A file of some kilobytes could fill the memory of a server."""
    np.savez_compressed(tmp_path / CONTRACT, at_start=np.array(["a"]), **{"a/out/y": np.zeros(10**6)})  # type: ignore[arg-type]  # numpy takes one of the names for its own flag
    with pytest.raises(BundleError, match=r"at_start\.npy is compressed"):
        read_contract(tmp_path)


def test_arrays_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    write_contract(tmp_path, [case_of(np.zeros((1, 1000)))])
    with zipfile.ZipFile(tmp_path / CONTRACT, "a") as archive:
        (large,) = (member for member in archive.infolist() if member.filename == "a/out/y.npy")
        for number in range(3):
            again = copy(large)
            again.filename = f"a/out/y{number}.npy"
            archive.filelist.append(again)
        archive.writestr("more", b"")  # the list of what is in it is written only if something is added
    with pytest.raises(BundleError, match=r"its arrays have \d+ bytes, the file \d+; export"):
        read_contract(tmp_path)


def real_tokens(case: Case) -> int:
    """Counted from the answers: a token that is real has a vector that is not all zeros."""
    return int(case.outputs["last_hidden_state"].any(-1).sum())


@pytest.mark.parametrize("fixture", ["minilm_bundle", "tiny_bundle", "tiny_roberta_bundle"])
def test_what_a_start_checks_stays_small_and_is_of_every_kind(fixture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(fixture)
    cases = read_contract(folder)
    at_start = [case for case in cases if case.at_start]
    assert START_TOKENS == 1500
    assert 0 < sum(map(real_tokens, at_start)) <= START_TOKENS
    assert {"one_token", "longest", "pads_right", "pads_left", "pads_in_holes"} <= {case.name for case in at_start}
    takes_text = any("text" in case.inputs for case in cases)
    assert any("text" in case.inputs for case in at_start) == takes_text == (fixture != "tiny_roberta_bundle")
    assert ("text_pair" in {case.name for case in at_start}) == takes_text
    assert len(at_start) < len(cases)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[[1.5]]], np.float32),
        np.array([True, False]),
        np.array(["ä", "longer"]),
        np.zeros((0, 3)),
        np.array(7),
    ],
)
def test_arrays_are_read_as_numpy_saves_them(tmp_path: Path, array: np.ndarray) -> None:
    write_contract(tmp_path, [Case("a", {"x": array}, {"y": array}, at_start=True)])
    (case,) = read_contract(tmp_path)
    for read in (case.inputs["x"], case.outputs["y"]):
        assert read.shape == array.shape
        assert (read == array).all()
        assert read.dtype == (object if array.dtype.kind == "U" else array.dtype)


def test_reading_parses_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11's parser fails now and then while other threads run, and a right bundle would be refused."""
    write_contract(tmp_path, [Case("a", {"x": np.zeros((2, 3))}, {"y": np.zeros(2)}, at_start=True)])

    def fail(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch (before=54, after=55)")

    monkeypatch.setattr("ast.literal_eval", fail)
    monkeypatch.setattr("ast.parse", fail)
    assert len(read_contract(tmp_path)) == 1


def test_a_file_that_is_written_into_after_it_was_opened_is_no_other_contract(tmp_path: Path) -> None:
    """As `cp` does it: the same file, with another bundle's cases of the same names and sizes."""
    other = tmp_path / "other"
    other.mkdir()
    for folder, value in ((tmp_path, 1.0), (other, 2.0)):
        write_contract(folder, [Case("a", {"x": np.zeros(2)}, {"y": np.full(10_000, value)}, at_start=True)])
    cases = StoredCases(tmp_path)
    (tmp_path / CONTRACT).write_bytes((other / CONTRACT).read_bytes())
    with pytest.raises(BundleError, match="is damaged: Bad CRC-32"):
        cases[0]


# What float32 cannot hold


@pytest.mark.parametrize(
    ("float32", "allowed"), [(0.0, 1e-5), (2.4e-6, 1e-5), (5e-6, 2e-5), (1e-3, 4e-3), (2.5e-3, 1e-2), (0.9, 1e-2)]
)
def test_four_times_the_error_of_float32_itself_is_allowed_up_to_a_hundredth(float32: float, allowed: float) -> None:
    case = Case("a", {}, {"y": REFERENCE}, True, {"y": float32})
    for off, holds in ((0.99 * allowed, True), (1.01 * allowed, False)):
        answers = {"y": REFERENCE + off * max(1.0, float(np.abs(REFERENCE).max()))}
        (finding,) = check([case], lambda *_, answers=answers: answers, "fp32", CPU)
        assert finding.holds == holds
        assert finding.budget == pytest.approx(allowed)


def test_what_float32_loses_says_nothing_of_another_output_or_of_a_cosine() -> None:
    case = Case("a", {}, {"last_hidden_state": AXIS}, True, {"another": 1e-4, "last_hidden_state": 1e-3})
    (finding,) = check([case], lambda *_: {"last_hidden_state": AXIS}, "int8", CPU)
    assert finding.budget == BUDGETS["int8", CPU].vectors.limit
    case = Case("a", {}, {"y": REFERENCE}, True, {"another": 1e-4})
    (finding,) = check([case], lambda *_: {"y": REFERENCE}, "fp32", CPU)
    assert finding.budget == 1e-5


def test_wide_budgets_are_told_once_for_each_output_where_they_are_widest() -> None:
    errors = [{"y": 2.4e-5, "z": 1e-3}, {"y": 5e-5, "z": 3e-3, "x": 1e-6}, {"y": 3e-5}]
    cases = [Case(name, {}, {}, True, each) for name, each in zip("abc", errors, strict=True)]
    assert [(wide.output, wide.case, wide.limit) for wide in wide_budgets(cases)] == [
        ("z", "b", 0.012),
        ("y", "b", 2e-4),
    ]
    said = "y may be off by 2e-04 of scale in case b, where PyTorch's own float32 is off by 5e-05"
    assert str(wide_budgets(cases)[1]) == said


def test_errors_of_float32_are_stored(tmp_path: Path) -> None:
    write_contract(tmp_path, [Case("a", {}, {"y": REFERENCE}, True, {"y": 2.5e-5})])
    (case,) = read_contract(tmp_path)
    assert case.float32_errors == {"y": 2.5e-5}


@pytest.mark.parametrize("error", [np.array(-1e-5), np.array(np.nan), np.array(np.inf), np.array([0.1]), np.array("x")])
def test_an_error_of_float32_that_is_no_number_is_refused(tmp_path: Path, error: np.ndarray) -> None:
    write_contract(tmp_path, [Case("a", {}, {"y": REFERENCE}, True, {"y": error})])  # type: ignore[dict-item]
    with pytest.raises(BundleError, match="float32's error is"):
        read_contract(tmp_path)
