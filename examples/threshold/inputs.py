"""Write one test patient's inputs and the startup's own rows: `inputs.py FOLDER [PATIENT]`.

xray.npy, dna.npy and blood.npy are of a synthetic patient: X-ray, genotypes and bloods are real, but of three
different people, joined by a simulated outcome. calibration.npz holds rows of the startup's validation
patients: the ranges of the model's polynomials are trusted to hold where these stay inside.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cohort.cohort import load

ROWS = 200


def main(folder: str, patient: str = "3") -> None:
    out = Path(folder)
    for name, values in load("test").inputs().items():
        np.save(out / f"{name}.npy", values[int(patient)])
        print(out / f"{name}.npy")
    np.savez(out / "calibration.npz", **{k: v[:ROWS] for k, v in load("validation").inputs().items()})
    print(out / "calibration.npz")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: inputs.py FOLDER [PATIENT]")
    main(*sys.argv[1:])
