"""Threshold CKKS: keys that nobody holds whole, one protocol a file, no network in them.

Convention everywhere: a ciphertext is (c0, c1) with c0 + c1 s = m, s = sum of s_i over the key holders,
every s_i ternary; arrays are uint64 residues in NTT form, shaped [.., limbs, N]; P is the special prime,
the last limb at key level (K limbs, D = K - 1 data limbs).
Adversary everywhere: semi-honest, all key holders but one (or all but n - t + 1 with `threshold.py`), with
the evaluator and any owner; each file says what is not protected beyond that. What every file has: `size`
(bytes), `sample` (the common string), `generate_share`, `aggregate`, `finish`.
Source: Mouchet, Troncoso-Pastoriza, Bossuat, Hubaux, "Multiparty Homomorphic Encryption from
Ring-Learning-with-Errors", PoPETs 2021 (eprint 2020/304), section by section in the files.
"""
