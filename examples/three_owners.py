"""Three owners, one model, one patient: the whole case in one call.

What happens: `run_local` starts six processes on this machine, each with its own key and TLS
connections, and they evaluate the startup's network together.

Who sees what: the hospital, the DNA company and the laboratory see their own input, the startup its own
weights, the helper random numbers that it made itself, the patient the risk. The two evaluators (startup
and hospital) see masked values besides. Two of startup, hospital and helper together could undo the masks.

The patient is synthetic: X-ray, genotypes and bloods are real, but of three different people, joined by a
simulated outcome. The risk is no medical statement; see `cohort/MODEL_CARD.md`.
"""

from pathlib import Path

import numpy as np
from cohort.cohort import RANGES, load

import privinfer

PATIENT = 3


def main() -> None:
    model = privinfer.from_onnx(Path(__file__).parent / "cohort" / "risk.onnx", RANGES)
    patients = load("test")
    result = privinfer.run_local(
        model,
        {
            "hospital": {"xray": patients.xray[PATIENT]},
            "dna_company": {"dna": patients.dna[PATIENT]},
            "laboratory": {"blood": patients.blood[PATIENT]},
        },
        model_owner="startup",
        evaluators=("startup", "hospital"),
        helper="helper",
        receiver="patient",
        with_reference=True,  # also in the clear, to show the difference; never with real data
    )
    logit = result.outputs["risk"][0, 0]
    report = result.report
    print(f"synthetic patient {PATIENT}: risk {1 / (1 + np.exp(-logit)):.1%} (logit {logit:.6f})")
    print(
        f"off from the model in the clear by {report['largest_absolute_error']:.1e}, "
        f"at most {report['precision']['declared_error_bound']:.1e}"
    )
    for name, party in report["parties"].items():
        sent = sum(sum(peers.values()) for peers in party["bytes"]["sent"].values())
        print(f"{name:<12} sent {sent / 1000:8.1f} kB  saw {'; '.join(party['sees'])}")
    print("  ".join(f"{phase} {seconds:.3f} s" for phase, seconds in report["seconds"].items()))
    print(f"{sum(report['online_rounds'].values())} online rounds")
    print(report["trust"])


if __name__ == "__main__":
    main()
