"""The section on threshold CKKS of docs/benchmarks.md, from a results file of benchmarks/ckks.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Results = dict[str, Any]
KINDS = ("public", "relinearisation", "rotations")


def seconds(s: dict[str, float]) -> str:
    """Median and ends, three digits."""
    if s["min"] == s["max"]:
        return f"{s['median']:.3g}"
    return f"{s['median']:.3g} ({s['min']:.3g}-{s['max']:.3g})"


def megabytes(count: float) -> str:
    """Three digits."""
    return f"{count / 1e6:.3g}"


def table(*rows: list[str]) -> list[str]:
    """Markdown of a head and its rows."""
    head, *rest = rows
    marks = f"|{'---|' * len(head)}"
    return [f"| {' | '.join(head)} |", marks, *(f"| {' | '.join(row)} |" for row in rest), ""]


def section(results: Results, quality: str) -> list[str]:
    """All that was measured."""
    m = results["machine"]
    names = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    out = [
        "## Threshold CKKS",
        "",
        f"`python -m benchmarks.ckks`, {results['started'][:10]}: {m['cpu']}, {m['cores']} cores; kernels on "
        f"{m['kernel_path']} with {m['kernel_threads']} threads unless a row says else. {names}. "
        f"Medians (least-largest) of {results['repeat']} repetitions after a warm-up; who "
        "is compared took turns. "
        f"{quality} {results['note']}".rstrip(),
        "",
    ]
    parts = results["parts"]
    for name, write in WRITERS.items():
        if name in parts:
            out += write(parts[name])
    return out


def _product(rows: list[Results]) -> list[str]:
    cells = [
        [r["system"], r["reason"], "", ""]
        if "reason" in r
        else [r["system"], seconds(r["seconds"]), f"{r['error']:.1e}", str(r["n"])]
        for r in rows
    ]
    return [
        "**A plain 64 x 4096 matrix times one ciphertext**, N = 16384, four data limbs "
        "of 50 bits (OpenFHE: the "
        "first of 60), keys and plaintexts ready. OpenFHE with three parties' keys, rotations as its plain "
        "calls make them or hoisted by EvalFastRotation. TenSEAL with one key, on a quarter of the columns, "
        "since it rotates once a column.",
        "",
        *table(["system", "s", "error", "runs"], *cells),
    ]


def _keys(rows: list[Results]) -> list[str]:
    cells = []
    for r in rows:
        sent = r["bytes"]
        same = "" if r["declared_bytes"] is None else "yes" if r["declared_bytes"] == sent else "NO"
        kinds = " / ".join(f"{r['by_kind'][k]['median']:.3g}" for k in KINDS)
        each = " / ".join(megabytes(sent[k]) for k in KINDS)
        cells.append(
            [
                str(r["parties"]),
                r["system"],
                seconds(r["seconds"]),
                kinds,
                each,
                megabytes(sum(sent.values())),
                same,
            ]
        )
    return [
        "**Joint keys**: public key, relinearisation key and 20 rotations, N = 16384, "
        "all parties' work in one "
        "process, one after the other, with nothing sent; so n parties at once, each "
        "with this many cores, take "
        "less. Each of our parties draws the common polynomials itself; OpenFHE's take them from the first "
        "one's key. *limbs*: 50-bit primes of the data, here and of the keys for "
        "rotations, which need no more "
        "than linear layers have (4 in the demonstration, whose other keys have 6). "
        "OpenFHE has 4 of them in all.",
        "",
        *table(
            [
                "parties",
                "system",
                "s",
                "of these public / relinearisation / rotations",
                "MB a party",
                "all",
                "as declared",
            ],
            *cells,
        ),
    ]


def _whole(title: str, found: Results) -> list[str]:
    single, alone, setup = found["single"], found["alone"], found["setup"]
    steps = ", ".join(f"{k} {v['median'] * 1e3:.0f}" for k, v in alone["steps"].items())
    out = [
        title,
        "",
        *table(
            ["what", "s", "error"],
            [
                f"one row, parties as processes ({single['rounds']} one-way messages)",
                seconds(single["seconds"]),
                f"{single['error']:.1e}",
            ],
            ["the model owner's evaluation alone", seconds(alone["seconds"]), f"{alone['error']:.1e}"],
            ["joining, keys and weights, once a session", f"{setup['seconds']:.3g}", ""],
        ),
        f"The model owner's milliseconds by step: {steps}.",
        "",
        *table(
            ["party", "MB sent: keys", "a row", "peak RSS MB"],
            *(
                [n, megabytes(setup["bytes"][n]), megabytes(b), f"{single['peak_rss_bytes'][n] / 1e6:.0f}"]
                for n, b in single["bytes"].items()
            ),
        ),
    ]
    if (b := found.get("batches")) is not None:
        out += [
            f"{b['rows']} test patients, {b['batch']} at a time: {b['same_decisions']} "
            "decisions as in the clear, "
            f"largest error {b['error']:.1e}, {b['seconds_a_row']:.3g} s a patient.",
            "",
        ]
    if (t := found.get("tenseal")) is not None:
        told = (
            t["reason"]
            if "reason" in t
            else f"{t['seconds']['median']:.3g} s, {megabytes(t['key_bytes'])} MB of keys made in "
            f"{t['key_seconds']:.3g} s, error {t['error']:.1e}; run once"
        )
        out += [f"{t['system']}: {told}.", ""]
    return out


def _demo(found: Results) -> list[str]:
    return _whole(
        "**The demonstration's model** (28x28 X-ray, variants, bloods), keys ready, four "
        "key holders, loopback. "
        "Online: from the moment keys and weights are in place until the slowest party "
        "is done. The error is the "
        "difference to the same polynomial model in the clear.",
        found,
    )


def _sarah(found: Results) -> list[str]:
    return _whole(
        "**`sarah`** with polynomials of degree 3 for its ReLUs, random weights, keys "
        "ready, four key holders, "
        "loopback.",
        found,
    )


def _errors(rows: list[Results]) -> list[str]:
    cells = [
        [
            r["protocol"],
            str(r["parties"]),
            f"{r['measured']:.4g}",
            f"{r['declared']:.4g}",
            f"{r['ratio']:.3f}",
            f"{r['slot_std']:.1e}",
        ]
        for r in rows
    ]
    return [
        "**Errors that protocols add**: standard deviation of a coefficient, N = 16384, "
        "beside the declared one; "
        "switches are smudged with 8 bits here, so that their own noise shows. Values have a scale of 2^50.",
        "",
        *table(["protocol", "parties", "measured", "declared", "ratio", "of a slot's value"], *cells),
    ]


def _costs(rows: list[Results]) -> list[str]:
    kinds = list(rows[0]["ms"])
    cells = [
        [str(r["n"]), str(r["limbs"]), *(f"{r['ms'][k]:.2f} ({r['model'][k]:.2f})" for k in kinds)]
        for r in rows
    ]
    return [
        "**The planner's cost model**: milliseconds of a kernel, the least of many runs "
        "(what the model has).",
        "",
        *table(["N", "limbs", *kinds], *cells),
    ]


WRITERS: dict[str, Callable[[Any], list[str]]] = {
    "product": _product,
    "keys": _keys,
    "demo": _demo,
    "sarah": _sarah,
    "errors": _errors,
    "costs": _costs,
}
