"""TenSEAL for benchmarks/ckks.py: its own matrix product, and `sarah-small` in its own idioms.

One key for all sources: whoever holds it reads every input. Activations are squares, since TenSEAL's idiom
for convolutions (im2col) allows one of them and a low depth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tenseal as ts

from benchmarks import workloads
from benchmarks.job import now

SPECIAL, BITS = 60, 38  # moduli of `sarah-small`: the depth is 8, and 16384 allows 438 bits in all
Found = dict[str, Any]


def product(path: Path) -> Found:
    """The product with the first columns only, since each takes a rotation; one sample, 4 data limbs."""
    with np.load(path, allow_pickle=False) as file:
        columns = int(file["slice"])
        matrix, x = file["matrix"][:, :columns], file["x"][:columns]
    context = ts.context(ts.SCHEME_TYPE.CKKS, 16384, -1, [60, 50, 50, 50, 60])
    context.global_scale = 2.0**50
    context.generate_galois_keys()
    given, plain = ts.ckks_vector(context, x.tolist()), matrix.T.tolist()
    at = now()
    y = given.mm(plain)
    seconds = now() - at
    return {"seconds": seconds, "error": float(np.abs(np.array(y.decrypt()) - matrix @ x).max())}


class Squares(workloads.Float64):
    """The reference of the same network with squares."""

    def relu(self, x: workloads.Array) -> workloads.Array:
        """A square in its place."""
        return np.asarray(x * x)


def sarah_small() -> Found:
    """Keys, then one inference."""
    work = workloads.load("sarah-small")
    w = {
        k: (a * (1.0 if k == "risk" else 0.5), b) for k, (a, b) in work.weights.items()
    }  # squares stay small
    inputs = work.inputs(1)
    wide = {k: v.astype(np.float64) for k, v in inputs.items()}
    expected = workloads.evaluate(Squares(), work.steps, w, wide)[0]
    at = now()
    context = ts.context(ts.SCHEME_TYPE.CKKS, 16384, -1, [SPECIAL, *[BITS] * 8, SPECIAL])
    context.global_scale = 2.0**BITS
    context.generate_galois_keys()
    found: Found = {"key_seconds": now() - at}
    public = context.copy()
    public.make_context_public()
    found["key_bytes"] = len(public.serialize())
    # an encrypted bias fills all slots; a plain one only the first, which a later mm() silently misreads
    dense = ("xray_dense", "dna_dense", "blood_dense", "fusion")
    bias = {k: ts.ckks_vector(context, w[k][1].tolist()) for k in dense}
    image = np.pad(inputs["xray"][0, 0], 2)
    xray, windows = ts.im2col_encoding(context, image.tolist(), 5, 5, 2)
    dna = ts.ckks_vector(context, inputs["dna"][0].tolist())
    blood = ts.ckks_vector(context, inputs["blood"][0].tolist())
    found["input_bytes"] = sum(len(c.serialize()) for c in (xray, dna, blood))

    def layer(x: Any, name: str) -> Any:
        y = x.mm(w[name][0].tolist()) + bias[name]
        y.square_()
        return y

    at = now()
    kernels, offsets = w["conv0"]
    maps = [
        xray.conv2d_im2col(kernels[c, 0].tolist(), windows) + float(offsets[c]) for c in range(len(offsets))
    ]
    h = ts.CKKSVector.pack_vectors(maps)
    h.square_()
    h, d, b = layer(h, "xray_dense"), layer(dna, "dna_dense"), layer(blood, "blood_dense")
    fusion = w["fusion"][0]
    first, second = w["xray_dense"][0].shape[1], w["dna_dense"][0].shape[1]
    cuts = fusion[:first], fusion[first : first + second], fusion[first + second :]
    parts = [x.mm(part.tolist()) for x, part in zip((h, d, b), cuts, strict=True)]
    z = parts[0] + parts[1] + parts[2] + bias["fusion"]
    z.square_()
    y = z.mm(w["risk"][0].tolist()) + w["risk"][1].tolist()
    found["seconds"] = now() - at
    found["error"] = float(np.abs(np.array(y.decrypt()) - expected).max())
    return found


if __name__ == "__main__":
    print(json.dumps(product(Path(sys.argv[2])) if sys.argv[1] == "product" else sarah_small()))
