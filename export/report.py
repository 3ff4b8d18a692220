"""`report.html`: what an export measured, as one page. It loads nothing and runs nothing.

The bundle's digests do not cover it, so it may hold measurements. `heed verify` measures again.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from heed.bundle.contract import Case, Finding, Report, wide_budgets
from heed.bundle.digests import DIGESTS, REPORT, bundle_digest
from heed.bundle.manifest import Manifest, TensorSpec
from heed.export.cases import TRIES
from heed.export.charts import KINDS, draw_rows, percent, shape, words

LONGEST_TEXT = 90  # characters
WITH_ATTENTIONS = " with attentions"  # ends the names of cases that request attention weights


def write_report(folder: Path, manifest: Manifest, cases: Sequence[Case], proofs: Mapping[str, Report]) -> None:
    """
    Args:
        folder: a bundle whose digests are written.
        proofs: what was found, by the name of the precision.
    """
    (folder / REPORT).write_text(report_page(manifest, bundle_digest(folder), cases, proofs), "utf-8")


def report_page(manifest: Manifest, digest: str, cases: Sequence[Case], proofs: Mapping[str, Report]) -> str:
    """The whole page. Everything that comes from the model (names, labels, texts) is escaped."""
    outputs = list(dict.fromkeys(found.output for report in proofs.values() for found in report.findings))
    return PAGE.substitute(
        style=STYLE,
        name=escape(manifest.name),
        about=_about(manifest, digest),
        verdict=_verdict(manifest, proofs),
        wide="\n".join(f'<p class="wide">{escape(str(wide))}.</p>' for wide in wide_budgets(cases)),
        legend=_legend(_measured(outputs)),
        overview=_overview(proofs, outputs),
        pictures="\n".join(_picture(precision, report, outputs) for precision, report in proofs.items()),
        cases=_case_table(cases, proofs),
        inputs=_tensor_table(manifest.inputs),
        outputs=_tensor_table(manifest.outputs),
        facts=_facts(manifest, digest),
        digests=DIGESTS,
    )


def _measured(outputs: Iterable[str]) -> list[str]:
    """The outputs that have an error to draw: labels are right or wrong."""
    return [output for output in outputs if output != "labels"]


def _about(manifest: Manifest, digest: str) -> str:
    labels = f"{len(manifest.labels)} labels" if manifest.labels else ""
    parts = [manifest.task.replace("_", " "), manifest.provenance.family, f"version {manifest.version}", labels]
    chips = "".join(f'<span class="chip">{escape(part)}</span>' for part in parts if part)
    return f'{chips}<code class="chip">{escape(digest[:19])}…</code>'


def _verdict(manifest: Manifest, proofs: Mapping[str, Report]) -> str:
    proven = [_precision_verdict(precision, report) for precision, report in proofs.items()]
    unproven = [precision for precision in manifest.precisions if not manifest.is_proven(precision)]
    return "\n".join([*proven, *(_unproven(precision) for precision in unproven if precision not in proofs)])


def _unproven(precision: str) -> str:
    return (
        f'<div class="tile unproven"><div class="precision">{escape(precision)}</div>'
        '<div class="sign">not proven yet</div><div>The machine that made the bundle has no device for it. '
        "The first server on such a device compares before it is ready.</div></div>"
    )


def _precision_verdict(precision: str, report: Report) -> str:
    worst = report.worst
    used = percent(worst.error / worst.budget) if math.isfinite(worst.error) else "no answer"
    kind, sign = ("holds", "✓") if report.holds else ("broken", "✗")
    return (
        f'<div class="tile {kind}"><div class="precision">{escape(precision)}</div>'
        f'<div class="sign">{sign} {report.verdict}</div>'
        f"<div>{len(report.findings)} comparisons; the worst uses <b>{used}</b> of its budget</div>"
        f'<div class="faint">{escape(words(worst))}</div></div>'
    )


def _legend(outputs: Sequence[str]) -> str:
    return "".join(
        f'<span class="key"><svg viewBox="0 0 14 14" width="14" height="14"><g class="mark{kind % KINDS}">'
        f"{shape(kind, 7, 7)}</g></svg>{escape(output)}</span>"
        for kind, output in enumerate(outputs)
    )


def _overview(proofs: Mapping[str, Report], outputs: Sequence[str]) -> str:
    """A line for each precision and output, a mark for each case."""
    rows = []
    for precision, report in proofs.items():
        for output in _measured(outputs):
            findings = [found for found in report.findings if found.output == output]
            if findings:
                rows.append((f"{precision} {output}", findings))
    return draw_rows(rows, _measured(outputs), "Errors by precision and output")


def _picture(precision: str, report: Report, outputs: Sequence[str]) -> str:
    """A line for each case, a mark for each output."""
    by_case: dict[str, list[Finding]] = {}
    for found in report.findings:
        if found.output in _measured(outputs):
            by_case.setdefault(found.case, []).append(found)
    picture = draw_rows(list(by_case.items()), _measured(outputs), f"Errors by case in {precision}")
    return f"<h3>{escape(precision)}</h3>\n<figure>{picture}</figure>"


def _case_table(cases: Sequence[Case], proofs: Mapping[str, Report]) -> str:
    """What each case tries, and the worst error in each precision."""
    head = "".join(f'<th class="number">{escape(precision)}</th>' for precision in proofs)
    rows = "".join(_case_row(case, proofs) for case in cases)
    return (
        '<table><thead><tr><th>case</th><th>what it tries</th><th>shape</th><th title="checked at every start of a '
        f'server">start</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _case_row(case: Case, proofs: Mapping[str, Report]) -> str:
    errors = "".join(_case_error(case, report) for report in proofs.values())
    start = "✓" if case.at_start else ""
    return (
        f"<tr><td><code>{escape(case.name)}</code></td><td>{_tries(case)}</td><td>{_sizes(case)}</td>"
        f'<td class="middle">{start}</td>{errors}</tr>\n'
    )


def _case_error(case: Case, report: Report) -> str:
    found = [one for one in report.findings if one.case.removesuffix(WITH_ATTENTIONS) == case.name]
    if not found:
        return '<td class="number faint">not compared</td>'
    worst = max(found, key=lambda one: one.error / one.budget)
    error = f"{worst.error:.1e}" if math.isfinite(worst.error) else "no answer"
    return f'<td class="number{"" if worst.holds else " wrong"}" title="{escape(words(worst))}">{error}</td>'


def _tries(case: Case) -> str:
    """In words, or the text itself."""
    if case.name in TRIES or "text" not in case.inputs:
        return escape(TRIES.get(case.name, ""))
    text = " ".join(str(case.inputs["text"][0]).split())
    return f"<q><bdi>{escape(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + '…')}</bdi></q>"


def _sizes(case: Case) -> str:
    """Rows and columns of a request; for texts in tokens."""
    batch, length = case.outputs["last_hidden_state"].shape[:2]
    rows = "1 row" if batch == 1 else f"{batch} rows"
    return f"{rows} × {length}"


def _tensor_table(specs: Iterable[TensorSpec]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(spec.name)}</code></td><td>{spec.datatype}</td><td><code>{spec.letters}</code>"
        f"</td><td>{escape(spec.help)}{' <span class=faint>optional</span>' if spec.optional else ''}</td></tr>\n"
        for spec in specs
    )
    return (
        f"<table><thead><tr><th>name</th><th>type</th><th>shape</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _facts(manifest: Manifest, digest: str) -> str:
    provenance, limits = manifest.provenance, manifest.limits
    facts = {
        "bundle": f"<code>{escape(digest)}</code>",
        "made by": f"<code>{escape(provenance.command)}</code>",
        "with": escape(", ".join(f"{tool} {version}" for tool, version in provenance.tools.items())),
        "longest row": f"{limits.length} tokens" + f", {limits.text_length} of a text" * bool(limits.text_length),
        "positions": escape(manifest.position_rule.kind),
        "labels": escape(", ".join(manifest.labels)) or "none",
        "graphs": "<br>".join(_graph(graph.file, graph.outputs, graph.longest) for graph in manifest.graphs),
        "source": "<br>".join(_source(provenance.source)),
    }
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in facts.items())


def _graph(file: str, outputs: Sequence[str], longest: int | None) -> str:
    rows = "" if longest is None else f", rows of up to {longest} columns"
    return f"<code>{escape(file)}</code> <span class=faint>{escape(', '.join(outputs))}{rows}</span>"


def _source(digests: Mapping[str, str]) -> Iterator[str]:
    for name, digest in digests.items():
        yield f"<code>{escape(name)}</code> <code class=faint>{escape(digest)}</code>"


STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --faint: #6b7482; --line: #dfe3e8; --paper: #fff; --stripe: #f6f7f9;
  --good: #12734a; --good-paper: #eaf6f0; --bad: #b3261e; --bad-paper: #fcebea;
  --mark0: #2463c9; --mark1: #c2571a; --mark2: #7b3fb5; --mark3: #0d8577; --mark4: #a12c64; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --faint: #98a2b1; --line: #343b46; --paper: #14181e;
  --stripe: #1a1f27; --good: #5fd3a0; --good-paper: #12281f; --bad: #ff8a80; --bad-paper: #321917;
  --mark0: #7cb0ff; --mark1: #ffa366; --mark2: #c79bf2; --mark3: #55d0c1; --mark4: #f285b8; } }
body { margin: 0 auto; max-width: 960px; padding: 40px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 30px; margin: 0 0 10px; overflow-wrap: anywhere; } h2 { font-size: 20px; margin: 44px 0 8px; }
h3 { font-size: 15px; margin: 24px 0 4px; } p { margin: 8px 0; max-width: 46em; }
figure { margin: 0; overflow-x: auto; }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.faint { color: var(--faint); } .chip { display: inline-block; margin: 0 8px 6px 0; padding: 1px 10px;
  border: 1px solid var(--line); border-radius: 12px; font-size: 13px; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 24px 0; }
.tile { flex: 1 1 260px; padding: 14px 18px; border-radius: 10px; font-size: 14px; }
.holds { background: var(--good-paper); } .broken { background: var(--bad-paper); }
.precision { font-weight: 600; } .sign { font-size: 19px; font-weight: 650; margin: 2px 0 6px; color: var(--good); }
.broken .sign, .wrong, .wide { color: var(--bad); } .unproven { background: var(--stripe); }
.unproven .sign { color: var(--faint); } .key { margin-right: 20px; white-space: nowrap; }
.key svg { vertical-align: -2px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th { text-align: left; color: var(--faint);
  font-weight: 600; font-size: 13px; } th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.middle { text-align: center; } td:nth-child(3), td:first-child { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; } dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } .key svg { display: inline; width: 14px; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink); }
svg .name, svg .worth, svg .end { text-anchor: end; } svg .tick { text-anchor: middle; fill: var(--faint); }
svg .tick.end { text-anchor: end; }
svg .stripe { fill: var(--stripe); } svg .grid { stroke: var(--line); } svg .beyond { fill: var(--bad-paper); }
svg .budget { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 5 3; } svg .budget-name { fill: var(--bad); }
.mark0 { fill: var(--mark0); } .mark1 { fill: var(--mark1); } .mark2 { fill: var(--mark2); }
.mark3 { fill: var(--mark3); } .mark4 { fill: var(--mark4); } figure [class^=mark] { fill-opacity: 0.72; }
"""

# The policy lets a browser load and run nothing, whatever a name or a text should manage to smuggle in.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name: equal to its reference?</title>
<style>$style</style>
</head>
<body>
<h1>$name</h1>
<div>$about</div>
<div class="tiles">
$verdict
</div>
$wide

<h2>At a glance</h2>
<p>Each mark is one request of the contract: how far the answer of the exported graph is from the answer of the PyTorch
reference, computed in float64. Each step to the left is ten times closer.</p>
<p>$legend</p>
<figure>$overview</figure>

<h2>Case by case</h2>
$pictures

<h2>The cases</h2>
<p>Inputs chosen to hurt. The error is that of the output which uses most of its budget; those with a ✓ are compared
again at every start of a server.</p>
$cases

<h2>How to read it</h2>
<p><b>Error</b>: the largest absolute difference to the reference, as a share of the largest absolute value in that
output and case (or of 1, if that is larger). Where a precision changes every number a little, vectors are compared by
<b>1 - cosine</b> of the one that differs most; both are 0 for the reference's own answer.</p>
<p><b>Budget</b>: what is allowed. It stands in one table for all models, follows from what the
arithmetic can hold, and was not fitted to what was measured here. Where PyTorch's own float32 is less exact, four times
its error in that very case is allowed, up to a hundredth. A bundle that exceeds its budget is never written.</p>
<p><b>Labels</b> are not drawn: they must be the reference's own, except where the best two scores are so close that the
budget lets either win.</p>
<p><b>This page proves nothing.</b> It shows what was measured on the machine that made the bundle, and it is no part of
what <code>$digests</code> covers. <code>heed verify</code> measures again wherever you are,
<code>heed verify --endpoint</code> asks a running server, and no server is ready before it has compared itself.</p>

<h2>What goes in</h2>
<p class="faint">B rows in a request, L tokens in each.</p>
$inputs

<h2>What comes out</h2>
$outputs

<h2>Where it comes from</h2>
<dl>
$facts</dl>
</body>
</html>
""")
