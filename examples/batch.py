"""A batch of patients in one run, private and in the clear, with honest figures.

What happens: as in `three_owners.py`, but every owner brings sixteen patients at once. A batch costs the
rounds of one patient; bytes grow with it. The same model then runs in the clear (`backend="plain"`, which
protects nothing and has to be named as insecure) for comparison.

Who sees what: as in `three_owners.py`; the receiver is an agent that may see all sixteen risks.

The patients are synthetic: X-ray, genotypes and bloods are real, but of three different people each,
joined by a simulated outcome.
"""

import time
from pathlib import Path

from cohort.cohort import RANGES, load

import privinfer

PATIENTS = 16
OWNERS = {"hospital": "xray", "dna_company": "dna", "laboratory": "blood"}


def main() -> None:
    model = privinfer.from_onnx(Path(__file__).parent / "cohort" / "risk.onnx", RANGES)
    rows = {name: values[:PATIENTS] for name, values in load("test").inputs().items()}
    inputs = {owner: {name: rows[name]} for owner, name in OWNERS.items()}

    started = time.perf_counter()
    private = privinfer.run_local(model, inputs, receiver="agent", with_reference=True)
    wall = time.perf_counter() - started
    clear = privinfer.run_local(model, inputs, backend="plain", insecure=(privinfer.insecure.PLAINTEXT,))

    print("synthetic patient  private logit  in the clear")
    risks = zip(private.outputs["risk"][:, 0], clear.outputs["risk"][:, 0], strict=True)
    for k, (mine, plain) in enumerate(risks):
        print(f"{k:17d}  {mine:13.6f}  {plain:12.6f}")
    seconds, bound = private.report["seconds"], private.report["precision"]["declared_error_bound"]
    print(f"off from float64 by at most {private.report['largest_absolute_error']:.1e}, bound {bound:.1e}")
    for what, spent in (
        ("online phase", seconds["online"]),
        ("offline and online", seconds["offline"] + seconds["online"]),
        ("all, with the start of six processes and their imports", wall),
        ("in the clear, fixed point, this process", clear.report["seconds"]["online"]),
    ):
        print(f"{PATIENTS / spent:9.1f} patients/s  {spent:7.3f} s  {what}")
    print("One run on this machine over loopback, all parties sharing its cores; networks add round trips.")
    print(f"{sum(private.report['online_rounds'].values())} online rounds for the whole batch")


if __name__ == "__main__":
    main()
