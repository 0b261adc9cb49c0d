"""What the doctor finds: each finding has a severity, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kvferry._command import status
from kvferry._command.output import Output

ERROR = "error"  # it does not work
WARNING = "warning"  # it works, slower or less safely than it could
INFO = "info"  # worth knowing
OK = "ok"
INDENT = 9  # of the lines after the one with the severity
SEVERITIES = (ERROR, WARNING, INFO, OK)


class Finding(NamedTuple):
    """One of them. subject is a word or two that programs can rely on."""

    severity: str
    subject: str
    found: str  # a sentence
    advice: str = ""  # a sentence that says what to do; "" where nothing is to be done


def error(subject: str, found: str, advice: str) -> Finding:
    """Something that does not work."""
    return Finding(ERROR, subject, found, advice)


def warning(subject: str, found: str, advice: str) -> Finding:
    """Something that works, and could be better."""
    return Finding(WARNING, subject, found, advice)


def info(subject: str, found: str, advice: str = "") -> Finding:
    """Something worth knowing."""
    return Finding(INFO, subject, found, advice)


def ok(subject: str, found: str) -> Finding:
    """Something that is as it should be."""
    return Finding(OK, subject, found)


def show(findings: Iterable[Finding], out: Output) -> None:
    """Print findings as they come. With --quiet only errors and warnings, and only with --verbose what is as it should
    be."""
    for finding in findings:
        if (finding.severity == OK and not out.verbose) or (finding.severity == INFO and out.quiet):
            continue
        out.paragraph(f"{finding.severity:8} {finding.subject}: {finding.found}", INDENT)
        if finding.advice:
            out.paragraph(" " * INDENT + finding.advice, INDENT)


def conclude(findings: list[Finding], measured: dict[str, Any], out: Output) -> int:
    """Say how it stands. Returns the exit status."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    if counts[ERROR] or counts[WARNING]:
        out.note(f"{_many(counts[ERROR], 'error')}, {_many(counts[WARNING], 'warning')}")
    else:
        out.note("nothing is wrong")
    out.result({"findings": [finding._asdict() for finding in findings], "measured": measured})
    return status.FAILED if counts[ERROR] else status.OK


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
