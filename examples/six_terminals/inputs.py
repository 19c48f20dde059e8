"""Write one test patient's three inputs as xray.npy, dna.npy and blood.npy: `inputs.py FOLDER [PATIENT]`.

The patient is synthetic: X-ray, genotypes and bloods are real, but of three different people, joined by a
simulated outcome. In a real session each owner has its own file and nobody ever has all three.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cohort.cohort import load


def main(folder: str, patient: str = "3") -> None:
    out = Path(folder)
    for name, values in load("test").inputs().items():
        np.save(out / f"{name}.npy", values[int(patient)])
        print(out / f"{name}.npy")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: inputs.py FOLDER [PATIENT]")
    main(*sys.argv[1:])
