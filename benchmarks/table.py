"""Results files to docs/benchmarks.md and its plots.

    python -m benchmarks.table benchmarks/results/DATE.json [scaling-DATE.json] [roofline-DATE.json] [..]
    python -m benchmarks.table                 a page that says that there was no run yet

Files are told apart by their schema; of several of the first kind the first is the page's, and the others
have a table of their own further down. Plots need matplotlib (the `bench` extra); `--no-plot` does without.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import table_ckks

ROOT = Path(__file__).resolve().parent.parent
PAGE, IMAGES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "img"
COMMAND = "python -m benchmarks.run"
Results = dict[str, Any]


# -- text ----------------------------------------------------------------------------------------------


def seconds(s: dict[str, float] | None) -> str:
    """Median and ends, three digits."""
    if s is None:
        return ""
    if s["min"] == s["max"]:
        return f"{s['median']:.3g}"
    return f"{s['median']:.3g} ({s['min']:.3g}-{s['max']:.3g})"


def megabytes(count: float | None) -> str:
    """Three digits."""
    return "" if count is None else f"{count / 1e6:.3g}"


def parted(by_party: dict[str, int] | None) -> str:
    """Each party's megabytes, in the order of the parties."""
    return "" if not by_party else " / ".join(megabytes(v) for v in by_party.values())


def rounds(gist: Results) -> str:
    """Rounds as the system counts them itself."""
    if "rounds" in gist:
        return str(gist["rounds"])
    if "sends" in gist:
        return f"{max(gist['sends'].values())} sends"
    return ""


SIZES = {
    "matmul": "1024 x 1024 x 1024",
    "conv": "64x56x56 to 64, 3x3",
    "relu": "of 1,000,000",
    "sigmoid": "of 100,000",
    "gelu": "of 100,000",
    "softmax": "of 100, 1000 rows",
}


def row_title(row: Results) -> str:
    """Workload, size and network."""
    name = row["workload"]
    size = f" {SIZES[name]}" if name in SIZES else f", batch {row['batch']}"
    return f"{name}{size}, {row['net']}"


def grouped(rows: list[Results]) -> dict[str, list[Results]]:
    """Rows that were measured together."""
    groups: dict[str, list[Results]] = {}
    for row in rows:
        groups.setdefault(row_title(row), []).append(row)
    return groups


def time_table(results: Results) -> list[str]:
    """The main table."""
    lines = [
        "| work | system | offline s | online s | total s | rounds | MB sent, all | error | RSS MB, all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, rows in grouped(results["rows"]).items():
        for row in rows:
            if "summary" not in row:
                lines.append(f"| {title} | {row['title']} | {row['status']}: {row.get('reason', '')} |||||||")
                continue
            gist = row["summary"]
            s = gist["seconds"]
            cells = [
                title,
                row["title"],
                seconds(s.get("offline")),
                seconds(s.get("online")),
                seconds(s["total"]),
                rounds(gist),
                megabytes(gist.get("wire_bytes_all")),
                f"{gist['error']:.1e}",
                f"{gist['peak_rss_bytes_all'] / 1e6:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def party_table(results: Results) -> list[str]:
    """Bytes of every privinfer party by phase, and what comes before the first run for all systems."""
    lines = ["| work | party | setup MB | offline MB | online MB |", "|---|---|---|---|---|"]
    for row in results["rows"]:
        sent = row.get("summary", {}).get("bytes")
        if not sent or row["net"] != "lo":
            continue
        for party in row["parties"]:
            cells = [megabytes(sent.get(p, {}).get(party, 0)) for p in ("setup", "offline", "online")]
            lines.append(f"| {row_title(row)} | {party} | {' | '.join(cells)} |")
    return lines


def start_table(results: Results) -> list[str]:
    """Seconds before the first run."""
    lines = ["| work | system | processes s | the rest s | MB sent |", "|---|---|---|---|---|"]
    for row in results["rows"]:
        if "start_seconds" not in row or "summary" not in row:
            continue
        start = dict(row["start_seconds"])
        first = start.pop("processes", 0.0)
        rest = ", ".join(f"{name} {value:.3g}" for name, value in start.items())
        wire = row.get("start_wire_bytes")
        sent = megabytes(sum(wire.values())) if wire else ""
        lines.append(f"| {row_title(row)} | {row['title']} | {first:.3g} | {rest} | {sent} |")
    return lines


def trust_table(results: Results) -> list[str]:
    """What each system protects against: without it no two rows can be compared."""
    lines = ["| system | private against | total includes |", "|---|---|---|"]
    known = {row["title"]: (row["trust"], row["total_includes"]) for row in results["rows"]}
    return lines + [f"| {title} | {trust} | {total} |" for title, (trust, total) in known.items()]


def network_table(results: Results) -> list[str]:
    """Declared and measured."""
    lines = [
        "| network | declared | measured: round trip ms | goodput Mbit/s (warm; cold) | packets dropped |",
        "|---|---|---|---|---|",
    ]
    for name, net in results["networks"].items():
        if "unavailable" in net:
            lines.append(f"| {name} | not available: {net['unavailable']} ||||")
            continue
        said = "loopback"
        if "mbit" in net:
            said = f"{net['mbit']:g} Mbit/s a host and direction, {net['rtt_ms']:g} ms, MTU {net['mtu']}"
        rate = f"{net['measured_mbit']:.0f}; {net['measured_mbit_cold']:.0f}"
        lines.append(f"| {name} | {said} | {net['measured_rtt_ms']:.3g} | {rate} | {net['dropped']} |")
    return lines


LEAVES_OUT = """\
- **Phases.** Each privinfer repetition runs twice. Once with all parties waiting between the phases:
  *offline* is from the common start until the last party has everything that is dealt (the owners' masks
  are part of it), *online* from the second start until the receiver holds the output. *total* is their sum.
  Once straight through ("whole" in the JSON), where the phases may overlap. A peer's total is from the
  common start until its receiver holds the output; what they could do ahead of time is inside, since they
  offer no way to do it apart.
- **Not in the total**, of any system: starting processes, connecting, compiling (SPU), sharing the weights;
  the table "before the first run" has them.
- **MB sent** is what left the parties' network interfaces in one repetition, TCP/IP headers and TLS
  included, warm connections. The table by party and phase counts our frames without TLS.
- **rounds** are one-way messages on the critical path for privinfer (input, compare and output included);
  for CrypTen its own count of collectives at one party; for SPU the largest number of sends of a party.
- **RSS** is the sum over parties of each one's largest resident size, interpreter and libraries included.
- **error** is the largest absolute difference to float64 over all repetitions.
- All parties share this machine's cores: with two cores and six processes, time is CPU time of all more
  than anything.
- Peers talk plain TCP, their default; privinfer TLS 1.3. CrypTen's processes are set to one
  thread each, since there are as many as cores (other settings were not tried); SPU and privinfer use their
  defaults.
- resnet18-64 is the whole network, max pool included, with batch norms folded in and two classes.
"""


BOUNDS = """\
CPU seconds, taken one kernel at a time on one thread of a busy two-core machine (vaes path, 2026-11-25):

- **Tables**: AES calls. 100,000 values at 2^8 cells and degree 2 (GELU, softmax's exp) are 638 calls a value
  and 0.12 s an evaluator, 1.9 ns a call, the products with the coefficients included; at 2^7 cells (sigmoid)
  318 calls and 0.086 s. Making the keys takes the helper 0.01 s: what it does besides is copying and TLS.
- **ReLU, large tensors**: memory. A copy of 40 MB takes 4.5 ms into memory that the process has, 35 ms into
  pages that have to be faulted in. So freed memory is kept, and no copy is made that is not needed.
- **Matmul**: five products of 1024^3 mod 2^64, two an evaluator and one at the helper: half of the samples
  of a profile of all three. Hashing an input of 8 MB takes 5.5 ms each time.
"""


def quality(results: Results) -> str:
    """How far the figures may be trusted."""
    m = results["machine"]
    if m["quiet"]:
        return f"Load before the run: {m['load_before']}."
    return f"**Taken on a busy machine (load {m['load_before']} before): for a look, not for comparison.**"


def page(found: dict[str, Results], further: list[Results] | None = None) -> str:
    """The whole of docs/benchmarks.md; `further` are runs with a table of their own."""
    out = ["# Benchmarks", "", "Generated by `python -m benchmarks.table`; do not edit.", ""]
    results = found.get("privinfer.benchmark/1")
    if results is None:
        out += [
            f"There was no run yet. `{COMMAND}` makes one; see `benchmarks/README.md`.",
            "",
            "## What the figures will mean",
            "",
            LEAVES_OUT,
        ]
    else:
        m = results["machine"]
        names = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
        out += [
            f"`{COMMAND}`, {results['started'][:10]}: {m['cpu']}, {m['cores']} cores, "
            f"{m['memory_bytes'] / 2**30:.0f} GiB, {m['system']}, Python {m['python']}; "
            f"kernels on {m['kernel_path']} with {m['kernel_threads']} threads. {names}.",
            f"Medians (least-largest) of {results['repeat']} repetitions after a warm-up; the systems of a "
            f"row took turns on the same machine. {quality(results)} {results['note']}".rstrip(),
            "",
            *time_table(results),
            "",
            "![seconds](img/benchmarks.svg)",
            "",
            "## These systems do not promise the same",
            "",
            *trust_table(results),
            "",
            "## What is measured and what is not",
            "",
            LEAVES_OUT,
            "## What bounds it",
            "",
            BOUNDS,
            "## Networks",
            "",
            "Each party is a host behind a full-duplex link of the rate, joined by a switch that adds half "
            "the round trip one way (`benchmarks/switch.c`); the same for every system.",
            "",
            *network_table(results),
            "",
            "## privinfer by party and phase",
            "",
            *party_table(results),
            "",
            "## Before the first run",
            "",
            *start_table(results),
            "",
        ]
    for k, large in enumerate(further or []):
        times = "once" if large["repeat"] == 1 else f"{large['repeat']} times"
        out += ["## Large batches and models", ""] if k == 0 else []
        out += [f"{large['started'][:10]}, {times}. {quality(large)} {large['note']}".rstrip(), ""]
        out += [*time_table(large), ""]
    if (ckks := found.get("privinfer.benchmark.ckks/1")) is not None:
        out += table_ckks.section(ckks, quality(ckks))
    if (scaling := found.get("privinfer.scaling/1")) is not None:
        out += scaling_section(scaling)
    if (roof := found.get("privinfer.roofline/1")) is not None:
        out += roofline_section(roof)
    return "\n".join(out).rstrip() + "\n"


def scaling_section(results: Results) -> list[str]:
    """Exponents and slopes."""
    lines = [
        "## How cost grows",
        "",
        f"`python -m benchmarks.scaling`, {results['started'][:10]}, network {results['net']}; batch sweep "
        f"over {results['work']}, the others over small networks of 16 rows. "
        f"{quality(results)} {results['note']}".rstrip(),
        "",
        "Exponent p of c x^p over the upper half of the sweep; a straight line through all of it, and the "
        "largest relative distance of a point from it. The first owner is an evaluator too and sends its "
        "input once, the others twice.",
        "",
        "| sweep | of | values | exponent | fixed | each more | off the line by |",
        "|---|---|---|---|---|---|---|",
    ]
    for sweep, data in results["sweeps"].items():
        values = f"{data['points'][0]['x']}-{data['points'][-1]['x']}"
        for name, f in data["fits"].items():
            off = f"{f['worst_relative_residual']:.1%}"
            cells = [
                sweep,
                name,
                values,
                f"{f['exponent']:.2f}",
                f"{f['fixed']:.4g}",
                f"{f['each_more']:.4g}",
                off,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "![growth](img/scaling.svg)", ""]


def roofline_section(results: Results) -> list[str]:
    """Reached against possible."""
    lines = [
        "## Kernels against the machine",
        "",
        f"`python -m benchmarks.roofline`, {results['started'][:10]}. "
        f"{quality(results)} {results['note']}".rstrip(),
        "",
        "Peaks are the same instructions in registers alone (`benchmarks/roofline.c`).",
        "",
        "| kernel | path | threads | per second | of its instructions' peak | of the machine's best |",
        "|---|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        if r["path"] == "portable":
            continue
        unit = "multiply-adds" if r["kind"] == "mac" else "AES calls"
        shares = ["" if r[k] is None else f"{r[k]:.0%}" for k in ("of_its_instructions", "of_this_machine")]
        path = f"**{r['path']}**" if r["default"] else r["path"]
        cells = [r["kernel"], path, str(r["threads"]), f"{r['per_second']:.3g} {unit}", *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


# -- plots ---------------------------------------------------------------------------------------------

OFFLINE, ONLINE = "#9db8d9", "#2b5c9e"
GREYS = ["#6f6f6f", "#8f8f8f", "#adadad", "#c6c6c6", "#dddddd"]


def plot_times(results: Results, path: Path) -> None:
    """A bar a system in each row: ours in two parts."""
    plt = _pyplot()
    groups = {t: [r for r in rows if "summary" in r] for t, rows in grouped(results["rows"]).items()}
    groups = {t: rows for t, rows in groups.items() if rows}
    if not groups:
        return
    fig, axes = plt.subplots(
        len(groups),
        1,
        figsize=(7, 0.5 + 0.2 * sum(len(g) + 2.2 for g in groups.values())),
        gridspec_kw={"height_ratios": [len(g) + 1 for g in groups.values()]},
        squeeze=False,
    )
    for (title, rows), ax in zip(groups.items(), axes[:, 0], strict=True):
        for k, row in enumerate(rows):
            s = {name: v["median"] for name, v in row["summary"]["seconds"].items()}
            total = row["summary"]["seconds"]["total"]
            if "offline" in s:
                ax.barh(k, s["online"], color=ONLINE)
                ax.barh(k, s["offline"], left=s["online"], color=OFFLINE)
            else:
                ax.barh(k, s["total"], color=GREYS[k % len(GREYS)])
            ax.plot([total["min"], total["max"]], [k, k], color="black", linewidth=0.8)
            ax.text(total["max"], k, f" {s['total']:.3g}", va="center", fontsize=7)
        ax.set_yticks(range(len(rows)), [r["title"] for r in rows], fontsize=7)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=8, loc="left")
        ax.tick_params(axis="x", labelsize=6)
        ax.margins(x=0.12)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[-1, 0].set_xlabel("seconds; privinfer: online (dark), offline (light)", fontsize=7)
    _save(fig, path)


def plot_scaling(results: Results, path: Path) -> None:
    """Seconds above, bytes below, a column a sweep."""
    plt = _pyplot()
    sweeps = results["sweeps"]
    fig, axes = plt.subplots(2, len(sweeps), figsize=(2.6 * len(sweeps), 4.4), squeeze=False)
    colours = {"setup": "#c6c6c6", "offline": OFFLINE, "online": ONLINE, "total": "#333333"}
    for column, (name, data) in enumerate(sweeps.items()):
        xs = [p["x"] for p in data["points"]]
        for row, (group, unit) in enumerate((("seconds", "s"), ("bytes", "bytes"))):
            ax = axes[row, column]
            for phase in data["points"][0][group]:
                p = data["fits"][f"{phase} {unit}"]["exponent"]
                ys = [point[group][phase] for point in data["points"]]
                ax.loglog(
                    xs, ys, ".-", color=colours[phase], label=f"{phase}: x^{p:.2f}", linewidth=1, markersize=4
                )
            ax.legend(fontsize=6, frameon=False)
            ax.tick_params(labelsize=6, which="both")
            ax.set_xlabel(name, fontsize=7)
            ax.set_ylabel(unit if group == "seconds" else "bytes, all parties", fontsize=7)
    _save(fig, path)


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - only the bench extra brings it

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "privinfer", "path.simplify": True})
    import matplotlib.pyplot as plt  # noqa: PLC0415

    return plt


def _save(fig: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


# -- the command -----------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Read, write, plot."""
    p = argparse.ArgumentParser(prog="benchmarks.table", description="results files to docs/benchmarks.md")
    p.add_argument("results", nargs="*", type=Path)
    p.add_argument("--out", type=Path, default=PAGE)
    p.add_argument("--images", type=Path, default=IMAGES)
    p.add_argument("--no-plot", action="store_true")
    args = p.parse_args(argv)
    found: dict[str, Results] = {}
    further: list[Results] = []
    for path in args.results:
        data = json.loads(path.read_text())
        if data["schema"] == "privinfer.benchmark/1" and data["schema"] in found:
            further.append(data)
        else:
            found[data["schema"]] = data
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(found, further))
    print(args.out)
    plots = {
        "privinfer.benchmark/1": (plot_times, "benchmarks"),
        "privinfer.scaling/1": (plot_scaling, "scaling"),
    }
    for schema, (plot, name) in plots.items():
        if schema in found and not args.no_plot:
            try:
                plot(found[schema], args.images / f"{name}.svg")
            except ImportError:
                print("no plots: pip install matplotlib, or privinfer[bench]")
                return 1
            print(args.images / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
