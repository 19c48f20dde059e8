"""OpenFHE's threshold CKKS for benchmarks/ckks.py: the 64 x 4096 product and joint keys, all parties in here.

The product is written as OpenFHE's users would write it well: generalised diagonals in 8 baby and 8 giant
steps, the babies hoisted by its own EvalFastRotation, then 6 rotate-and-add folds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import openfhe as fhe

from benchmarks.job import Line, now, serve

ROWS, COLUMNS, BABIES, FOLDS, DEPTH = 64, 4096, 8, 6, 3
ROTATIONS = [*range(1, BABIES), *range(BABIES, ROWS, BABIES), *(ROWS << k for k in range(FOLDS))]


def context(n: int) -> Any:
    """Ring and moduli: data limbs of 60 and 3 times 50 bits; the special modulus is OpenFHE's choice."""
    p = fhe.CCParamsCKKSRNS()
    p.SetMultiplicativeDepth(DEPTH)
    p.SetScalingModSize(50)
    p.SetFirstModSize(60)
    p.SetRingDim(n)
    p.SetBatchSize(COLUMNS)
    p.SetSecurityLevel(fhe.HEStd_128_classic)
    cc = fhe.GenCryptoContext(p)
    for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE", "MULTIPARTY"):
        cc.Enable(getattr(fhe.PKESchemeFeature, feature))
    return cc


def size(thing: Any) -> int:
    """Bytes of the serialised form."""
    return len(fhe.Serialize(thing, fhe.BINARY))


def joint_keys(cc: Any, parties: int) -> tuple[list[Any], dict[str, Any]]:
    """Public key, relinearisation key, rotation keys; seconds of each and bytes that a party sends."""
    seconds, at = {}, now()
    keys = [cc.KeyGen()]
    for _ in range(1, parties):
        keys.append(cc.MultipartyKeyGen(keys[-1].publicKey))
    tag = keys[-1].publicKey.GetKeyTag()
    seconds["public"] = now() - at

    at = now()
    first = [cc.KeySwitchGen(keys[0].secretKey, keys[0].secretKey)]
    first += [cc.MultiKeySwitchGen(k.secretKey, k.secretKey, first[0]) for k in keys[1:]]
    total = first[0]
    for share in first[1:]:
        total = cc.MultiAddEvalKeys(total, share, tag)
    second = [cc.MultiMultEvalKey(k.secretKey, total, tag) for k in keys]
    relinearisation = second[0]
    for share in second[1:]:
        relinearisation = cc.MultiAddEvalMultKeys(relinearisation, share, tag)
    cc.InsertEvalMultKey([relinearisation])
    seconds["relinearisation"] = now() - at

    at = now()
    cc.EvalAtIndexKeyGen(keys[0].secretKey, ROTATIONS)
    own = fhe.CryptoContext.GetEvalAutomorphismKeyMap(keys[0].secretKey.GetKeyTag())
    rotations = own
    for k in keys[1:]:
        share = cc.MultiEvalAtIndexKeyGen(k.secretKey, own, ROTATIONS, tag)
        rotations = cc.MultiAddEvalAutomorphismKeys(rotations, share, tag)
    cc.InsertEvalAutomorphismKey(rotations, tag)
    seconds["rotations"] = now() - at
    sent = {"public": size(keys[0].publicKey), "relinearisation": size(first[0]) + size(second[0])}
    sent["rotations"] = len(fhe.SerializeEvalAutomorphismKeyString(fhe.BINARY, tag))
    return keys, {"seconds": seconds, "bytes": sent}


class Product:
    """A matrix under three parties' keys."""

    def __init__(self, cc: Any, matrix: Any, x: Any) -> None:
        self.cc, self.expected = cc, matrix @ x
        self.keys, _ = joint_keys(cc, 3)
        j = np.arange(COLUMNS)
        diagonals = [matrix[j % ROWS, (j + d) % COLUMNS] for d in range(ROWS)]
        turned = [np.roll(v, BABIES * (d // BABIES)) for d, v in enumerate(diagonals)]
        self.plain = [cc.MakeCKKSPackedPlaintext(v.tolist()) for v in turned]
        packed = cc.MakeCKKSPackedPlaintext(x.tolist())
        self.given = cc.Encrypt(self.keys[-1].publicKey, packed)
        self.order = 2 * cc.GetRingDimension()

    def run(self, hoisted: bool) -> tuple[float, Any]:
        """Seconds, and the ciphertext."""
        cc, at = self.cc, now()
        if hoisted:
            digits = cc.EvalFastRotationPrecompute(self.given)
            babies = [cc.EvalFastRotation(self.given, b, self.order, digits) for b in range(1, BABIES)]
        else:
            babies = [cc.EvalRotate(self.given, b) for b in range(1, BABIES)]
        babies = [self.given, *babies]
        y = None
        for g in range(0, ROWS, BABIES):
            part = cc.EvalMult(babies[0], self.plain[g])
            for b in range(1, BABIES):
                part = cc.EvalAdd(part, cc.EvalMult(babies[b], self.plain[g + b]))
            part = cc.EvalRotate(part, g) if g else part
            y = part if y is None else cc.EvalAdd(y, part)
        for k in range(FOLDS):
            y = cc.EvalAdd(y, cc.EvalRotate(y, ROWS << k))
        return now() - at, y

    def error(self, y: Any) -> float:
        """After the joint decryption."""
        cc, keys = self.cc, [k.secretKey for k in self.keys]
        parts = [cc.MultipartyDecryptLead([y], keys[0])[0]]
        parts += [cc.MultipartyDecryptMain([y], k)[0] for k in keys[1:]]
        out = cc.MultipartyDecryptFusion(parts)
        out.SetLength(ROWS)
        return float(np.abs(np.array(out.GetRealPackedValue())[:ROWS] - self.expected).max())


def main() -> int:
    """Answer the driver: ``product`` (hoisted or not) and ``keys`` (for so many parties)."""
    line = Line()
    line.say(hello={})
    n = int(line.hear()["join"]["n"])
    with np.load(Path(sys.argv[1]), allow_pickle=False) as file:
        matrix, x = file["matrix"], file["x"]
    cc = context(n)
    product = Product(cc, matrix, x)

    def one(message: dict[str, Any]) -> dict[str, Any]:
        if message["run"] == "product":
            seconds, y = product.run(bool(message["hoisted"]))
            return {"seconds": seconds, "error": product.error(y)}
        _, found = joint_keys(cc, int(message["parties"]))
        return found

    serve(line, one, {"ring": cc.GetRingDimension(), "rotations": len(ROTATIONS)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
