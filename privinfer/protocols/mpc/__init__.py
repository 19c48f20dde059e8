"""Masked wires between two evaluators E1, E2 and a helper H (PROTOCOLS in docs/protocols.md).

A wire x has a mask r = r1 + r2. E1 and E2 both know the masked value x^ = x + r; E_i knows r_i; H knows
r1 and r2 and never sees x^. Adversary everywhere in this package: semi-honest, one of E1, E2, H, who may
also be an owner; owners and receivers may be anyone.
"""
