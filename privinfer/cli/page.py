"""A run as one HTML file: pictures in SVG, no script, nothing from the network, numbers of the report."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from privinfer.cli.common import size
from privinfer.errors import InputError
from privinfer.plan.layers import Layer

SCHEMA = "privinfer.report/1"
PHASES = ("setup", "offline", "online")
COLOURS = {"setup": "#8a8f98", "offline": "#4477aa", "online": "#cc6677"}
BINS = 24
MAX_REPORT = 64 << 20

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}"
    "td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,td.t{text-align:left}svg{max-width:100%;height:auto}"
    "svg text{font:12px system-ui,sans-serif;fill:#222}.trust{border-left:4px solid #4477aa;padding:.5em 1em;"
    "background:#f4f6fa}.bad{border-color:#cc6677;background:#fbf2f3}"
)
# no source of anything is allowed, so the page cannot call out whatever stands in a name
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def read_report(path: Path) -> dict[str, Any]:
    """Read a report file.

    Raises
    ------
    InputError
        It cannot be read or is no report.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_REPORT + 1)
        found = json.loads(raw)
    except OSError as error:
        raise InputError(f"cannot read report {path}: {(error.strerror or 'error').lower()}") from None
    except (ValueError, RecursionError):
        raise InputError(f"report {path} is not JSON", hint="write it with --report") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"report {path} is no {SCHEMA}", hint="write it with `privinfer run --report`")
    return found


def page(
    report: dict[str, Any],
    layers: Sequence[Layer] = (),
    errors: Sequence[float] | None = None,
) -> str:
    """Show a run.

    Parameters
    ----------
    report : dict
        Schema ``privinfer.report/1``, of one party or merged.
    layers : sequence of Layer
        Cost of each layer, where the model is known.
    errors : sequence of float, optional
        Differences to the clear model, where one was given.

    Returns
    -------
    str
        An HTML document.

    Raises
    ------
    InputError
        The report lacks what a report has.
    """
    try:
        parties = _parties(report)
        parts = [_trust(report), _facts(report), _arrows(parties), _moved(parties), _timeline(parties)]
        if layers:
            parts.append(_layers(layers))
        if errors is not None:
            parts.append(_histogram(errors, report["precision"].get("declared_error_bound")))
        parts.append(_seen(parties))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the report is not complete: {type(error).__name__}") from None
    title = f"privinfer run {str(report.get('session', ''))[:8]}".strip()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<style>{_STYLE}</style></head>\n<body><h1>{_e(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _parties(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One entry a party; the report of one party alone has one."""
    if "parties" in report:
        return dict(report["parties"])
    return {report["party"]: {k: report[k] for k in ("roles", "sees", "bytes", "seconds", "peak_rss_bytes")}}


def _trust(report: dict[str, Any]) -> str:
    insecure = report.get("insecure") or []
    said = f"<p>insecure options: {_e(', '.join(insecure))}</p>" if insecure else ""
    css = "trust bad" if insecure or report["trust"].startswith("not private") else "trust"
    return f'<div class="{css}" id="trust"><strong>Trust</strong><p>{_e(report["trust"])}</p>{said}</div>'


def _facts(report: dict[str, Any]) -> str:
    seconds = report["seconds"]
    rounds = report.get("online_rounds") or {}
    rows = [
        ("backend", report["backend"]),
        *((f"{p}, seconds", f"{seconds[p]:.3f}") for p in PHASES),
        ("online rounds", ", ".join(f"{v} {k}" for k, v in rounds.items()) or "-"),
        ("declared error bound", f"{report['precision'].get('declared_error_bound') or 0:.2g}"),
    ]
    if "largest_absolute_error" in report:
        rows.append(("largest difference to the clear model", f"{report['largest_absolute_error']:.2g}"))
    return "<table>" + "".join(f"<tr><th>{_e(k)}</th><td>{_e(v)}</td></tr>" for k, v in rows) + "</table>"


def _flows(parties: dict[str, dict[str, Any]]) -> dict[tuple[str, str], dict[str, int]]:
    """Bytes from sender to receiver by phase; what only the receiver reported counts too."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, one in parties.items():
        for phase in PHASES:
            for peer, count in one["bytes"]["sent"].get(phase, {}).items():
                found.setdefault((name, peer), {})[phase] = int(count)
            for peer, count in one["bytes"]["received"].get(phase, {}).items():
                found.setdefault((peer, name), {}).setdefault(phase, int(count))
    return found


def _arrows(parties: dict[str, dict[str, Any]]) -> str:
    flows = _flows(parties)
    names = list(dict.fromkeys([*parties, *(n for pair in flows for n in pair)]))
    middle, radius = (360.0, 230.0), 165.0
    at = {
        n: (
            middle[0] + 1.4 * radius * math.sin(2 * math.pi * k / len(names)),
            middle[1] - radius * math.cos(2 * math.pi * k / len(names)),
        )
        for k, n in enumerate(names)
    }
    most = max((sum(f.values()) for f in flows.values()), default=1) or 1
    lines = []
    for (sender, receiver), by in flows.items():
        total = sum(by.values())
        if not total:
            continue
        (x1, y1), (x2, y2) = at[sender], at[receiver]
        long = math.hypot(x2 - x1, y2 - y1) or 1.0
        dx, dy = (x2 - x1) / long, (y2 - y1) / long
        ox, oy = -dy * 5, dx * 5  # there and back beside each other
        width = 1 + 7 * math.log1p(total) / math.log1p(most)
        colour = COLOURS[max(by, key=lambda p: by[p])]
        said = ", ".join(f"{p} {size(by[p])}" for p in PHASES if by.get(p))
        lines.append(
            f'<line x1="{x1 + 30 * dx + ox:.1f}" y1="{y1 + 30 * dy + oy:.1f}" x2="{x2 - 38 * dx + ox:.1f}" '
            f'y2="{y2 - 38 * dy + oy:.1f}" stroke="{colour}" stroke-width="{width:.1f}" stroke-opacity=".65" '
            f'marker-end="url(#tip)"><title>{_e(sender)} to {_e(receiver)}: {_e(said)}</title></line>'
        )
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="26" fill="#fff" stroke="#222"/>'
        f'<text x="{x:.1f}" y="{y + 42:.1f}" text-anchor="middle">{_e(n)}</text>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{_e(size(_sent(parties, n)))}</text>'
        for n, (x, y) in at.items()
    ]
    tip = (
        '<defs><marker id="tip" markerWidth="10" markerHeight="8" refX="6" refY="4" orient="auto" '
        'markerUnits="userSpaceOnUse"><path d="M0,0L10,4L0,8z" fill="#222"/></marker></defs>'
    )
    return (
        '<h2>Who sent what to whom</h2><svg id="flows" viewBox="0 0 720 480" role="img">'
        f"{tip}{''.join(lines)}{''.join(dots)}</svg><p>In each circle: bytes sent. {_legend()}</p>"
    )


def _legend() -> str:
    return " ".join(f'<span style="color:{c}">&#9632;</span> {p}' for p, c in COLOURS.items())


def _sent(parties: dict[str, dict[str, Any]], name: str) -> int:
    return sum(sum(v.values()) for v in parties[name]["bytes"]["sent"].values()) if name in parties else 0


def _moved(parties: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"<tr><td>{_e(a)}</td><td class=t>{_e(b)}</td>"
        + "".join(f"<td>{_e(size(by.get(p, 0)))}</td>" for p in PHASES)
        for (a, b), by in sorted(_flows(parties).items())
        if any(by.values())
    ]
    head = "<tr><th>from</th><th class=t>to</th>" + "".join(f"<th>{p}</th>" for p in PHASES)
    return f"<table>{head}</tr>{''.join(rows)}</table>"


def _timeline(parties: dict[str, dict[str, Any]]) -> str:
    longest = max((sum(one["seconds"][p] for p in PHASES) for one in parties.values()), default=0) or 1
    bars, y = [], 10
    for name, one in parties.items():
        x = 130.0
        bars.append(f'<text x="120" y="{y + 14}" text-anchor="end">{_e(name)}</text>')
        for phase in PHASES:
            wide = 560 * one["seconds"][phase] / longest
            bars.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(wide, 0.5):.1f}" height="18" fill="{COLOURS[phase]}">'
                f"<title>{_e(name)}: {phase} {one['seconds'][phase]:.3f} s</title></rect>"
            )
            x += wide
        y += 26
    return (
        f'<h2>Time of the parties by phase</h2><svg id="timeline" viewBox="0 0 720 {y + 20}" role="img">'
        f'{"".join(bars)}<text x="130" y="{y + 14}">0</text>'
        f'<text x="690" y="{y + 14}" text-anchor="end">{longest:.3g} s</text></svg><p>{_legend()}</p>'
    )


def _layers(layers: Sequence[Layer]) -> str:
    most = max(1, *(one.dealt + one.online for one in layers))
    rows = [
        f"<tr><td>{_e(one.node)}</td><td class=t>{_e(', '.join(one.kinds))}</td><td>{one.rounds}</td>"
        f"<td>{_e(size(one.dealt))}</td><td>{_e(size(one.online))}</td><td class=t>"
        f'<svg width="160" height="12" viewBox="0 0 160 12"><rect height="12" '
        f'width="{160 * one.dealt / most:.1f}" fill="{COLOURS["offline"]}"/>'
        f'<rect x="{160 * one.dealt / most:.1f}" '
        f'width="{160 * one.online / most:.1f}" height="12" fill="{COLOURS["online"]}"/></svg></td></tr>'
        for one in layers
    ]
    return (
        '<h2>Cost of each layer</h2><table id="layers"><tr><th>layer</th><th class=t>steps</th>'
        f"<th>rounds</th><th>dealt</th><th>online</th><th></th></tr>{''.join(rows)}</table>"
        "<p>From the plan; inputs, outputs and weights are not in it.</p>"
    )


def _histogram(errors: Sequence[float], bound: float | None) -> str:
    values = np.asarray(errors, dtype=np.float64).reshape(-1)
    reach = float(np.abs(values).max(initial=0)) or 1e-12
    counts, edges = np.histogram(values, bins=BINS, range=(-reach, reach))
    tall = max(int(counts.max(initial=0)), 1)
    bars = [
        f'<rect x="{40 + 26 * k}" y="{160 - 140 * c / tall:.1f}" width="24" height="{140 * c / tall:.1f}" '
        f'fill="{COLOURS["offline"]}"><title>{edges[k]:.2g} to {edges[k + 1]:.2g}: {c}</title></rect>'
        for k, c in enumerate(counts.tolist())
    ]
    said = f" The declared bound is {bound:.2g}." if bound else ""
    return (
        '<h2>Difference to the clear model</h2><svg id="errors" viewBox="0 0 720 190" role="img">'
        f'{"".join(bars)}<text x="40" y="180">{-reach:.2g}</text>'
        f'<text x="664" y="180" text-anchor="end">{reach:.2g}</text></svg>'
        f"<p>{values.size} values, largest {reach:.2g}.{said}</p>"
    )


def _seen(parties: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"<tr><td>{_e(n)}</td><td class=t>{_e(', '.join(one['roles']))}</td>"
        f"<td class=t>{_e('; '.join(one['sees']) or 'nothing')}</td>"
        f"<td>{_e(size(one['peak_rss_bytes']))}</td></tr>"
        for n, one in parties.items()
    ]
    return (
        '<h2>What each party could see</h2><table id="sees"><tr><th>party</th><th class=t>roles</th>'
        f"<th class=t>beyond names, shapes, sizes and times</th><th>memory</th></tr>{''.join(rows)}</table>"
    )
