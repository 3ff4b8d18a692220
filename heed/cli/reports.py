"""A proof as a table and as one line, for the terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from heed.bundle.contract import Finding, Report


def error_text(finding: Finding) -> str:
    return "no answer" if finding.reason else f"{finding.error:.1e}"


def budget_text(finding: Finding) -> str:
    return f"{finding.budget:.0e}" + (" (1 - cosine)" if finding.measure == "cosine" else "")


def report_table(findings: Iterable[Finding]) -> Table:
    """Case, output, error, budget, and how much of the budget is used."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "output"):
        table.add_column(name)
    for name in ("error", "budget", "of budget"):
        table.add_column(name, justify="right")
    table.add_column("")
    for finding in findings:
        share = "" if finding.reason else f"{finding.error / finding.budget:.1%}"
        verdict = "[green]✓[/]" if finding.holds else f"[bold red]✗ {escape(finding.reason)}[/]"
        table.add_row(finding.case, finding.output, error_text(finding), budget_text(finding), share, verdict)
    return table


def summary(report: Report) -> str:
    """One line: whether it holds, and where it is worst."""
    worst = report.worst
    where = f"worst: {error_text(worst)} of {budget_text(worst)} allowed, {worst.output} in {worst.case}"
    if report.holds:
        return f"[green]{report.verdict}[/] in {len(report.findings)} comparisons; {where}"
    broken = sum(not finding.holds for finding in report.findings)
    return f"[bold red]{report.verdict}[/] in {broken} of {len(report.findings)} comparisons; {where}"
