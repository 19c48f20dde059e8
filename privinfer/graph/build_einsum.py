"""Einstein sums of one or two operands, as products of matrices between transpositions."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from privinfer.graph import ir
from privinfer.graph.build_core import Const, Value, refuse

if TYPE_CHECKING:
    from privinfer.graph.build_parts import Parts


def einsum(b: Parts, equation: str, operands: Sequence[Value | Const]) -> Value:
    """``einsum(equation, *operands)`` with the batch as the first letter of every private operand.

    Parameters
    ----------
    b : Builder
        Emits the nodes.
    equation : str
        As NumPy has it; an ellipsis stands for the same axes everywhere.
    operands : sequence of Value or Const
        One or two, not all of them constant.
    """
    terms, output = _parse(equation, operands)
    batches = {t[0] for t, x in zip(terms, operands, strict=True) if isinstance(x, Value) and t}
    if len(batches) != 1:
        refuse("never: the first letter of all private operands has to be the batch")
    batch = batches.pop()
    if not output.startswith(batch) or any(batch in t[1:] for t in (*terms, output)):
        refuse("never: it touches the batch axis (axis 0), samples have to stay apart")
    parts: list[tuple[str, Value | Const]] = []
    for k, (term, x) in enumerate(zip(terms, operands, strict=True)):
        if len(set(term)) != len(term):
            refuse("not yet: a letter twice in one operand")
        if isinstance(x, Const):
            if term.startswith(batch):
                refuse("never: a constant along the batch axis (axis 0)")
            parts.append((term, x))
            continue
        others = set("".join((*terms[:k], *terms[k + 1 :], output)))
        y, kept = b.plain(x), term
        for c in term:
            if c not in others:
                y, kept = b.emit(ir.Sum(kept.index(c)), [y]), kept.replace(c, "")
        parts.append((kept[1:], y))
    wanted = output[1:]
    if len(parts) == 1:
        ((letters, only),) = parts
        if not isinstance(only, Value) or sorted(letters) != sorted(wanted):
            refuse("not yet: this equation")
        return b.transpose(only, [0, *(letters.index(c) + 1 for c in wanted)])
    if len(parts) != 2:
        refuse("not yet: more than two operands")
    (s, left), (t, right) = parts
    if isinstance(left, Value):
        return _pair(b, s, left, t, right, wanted)
    if isinstance(right, Value):
        return _pair(b, t, right, s, left, wanted)
    refuse("not yet: an equation of constants")


def _parse(equation: str, operands: Sequence[Value | Const]) -> tuple[list[str], str]:
    text = equation.replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        refuse("its equation does not fit its operands")
    free = [c for c in string.ascii_letters if c not in text]
    if "..." in text:
        ranks = [x.rank if isinstance(x, Value) else x.array.ndim for x in operands]
        counts = {r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True) if "..." in t}
        if len(counts) != 1 or not 0 <= (n := counts.pop()) <= len(free):
            refuse("not yet: an ellipsis that stands for different axes")
        dots = "".join(free[:n])
        terms = [t.replace("...", dots) for t in terms]
        output = output.replace("...", dots)
        if not arrow:
            output = dots
    if not arrow:
        letters = "".join(terms)
        output += "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in output))
    for term, x in zip(terms, operands, strict=True):
        rank = x.rank if isinstance(x, Value) else x.array.ndim
        if len(term) != rank or not term.isalpha():
            refuse("its equation does not fit its operands")
    if len(set(output)) != len(output) or not set(output) <= set("".join(terms)):
        refuse("its equation does not fit its operands")
    return terms, output


def _pair(b: Parts, s: str, x: Value, t: str, y: Value | Const, wanted: str) -> Value:
    """Two operands, letters without the batch."""
    sizes = dict(zip(s, x.shape, strict=True))
    shape = y.shape if isinstance(y, Value) else y.array.shape
    if any(sizes.setdefault(c, d) != d for c, d in zip(t, shape, strict=True)):
        refuse("its operands do not fit together")
    both = [c for c in s if c in t and c in wanted]
    inner = [c for c in s if c in t and c not in wanted]
    left = [c for c in s if c not in t]
    right = [c for c in t if c not in s]

    def size(letters: Sequence[str]) -> int:
        return math.prod(sizes[c] for c in letters)

    x = b.transpose(x, [0, *(s.index(c) + 1 for c in (*both, *left, *inner))])
    lead = tuple(sizes[c] for c in both)
    if isinstance(y, Const) and not both:
        w = b.weights(y)
        if any(c not in wanted for c in right):
            drop = tuple(t.index(c) for c in right if c not in wanted)
            w, t = w.sum(axis=drop), "".join(c for c in t if c in wanted or c in inner)
            right = [c for c in right if c in wanted]
        w = w.transpose([t.index(c) for c in (*inner, *right)]).reshape(size(inner), size(right))
        z = b.linear(b.sample(x, (size(left), size(inner))), w)
    else:
        y = b.secret(b.weights(y), x) if isinstance(y, Const) else y
        y = b.transpose(y, [0, *(t.index(c) + 1 for c in (*both, *inner, *right))])
        x = b.sample(x, (*lead, size(left), size(inner)))
        y = b.sample(y, (*lead, size(inner), size(right)))
        if size(inner) == 1 and size(left) == size(right) == 1:
            z = b.multiply_values(x, y)
        else:
            z = b.matmul_values(x, y)
    z = b.sample(z, tuple(sizes[c] for c in (*both, *left, *right)))
    have = "".join((*both, *left, *right))
    return b.transpose(z, [0, *(have.index(c) + 1 for c in wanted)])
