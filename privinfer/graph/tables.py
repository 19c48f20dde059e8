"""The model owner's side of tables: makes those that a model's program needs and puts them into it."""

from __future__ import annotations

from privinfer.graph import approx, functions, ir, lower
from privinfer.graph.emitter import Wanted


def tabulated(model: ir.Model) -> ir.Model:
    """Give the same model with the tables that its program needs at its precision, and no others.

    Parameters
    ----------
    model : Model
        With its declared precision.

    Returns
    -------
    Model
        With tables in its architecture.

    Raises
    ------
    ModelUnsupported, PrecisionError
        A function has no table there; the message names the node.
    """
    architecture = lower.tabulate(model.architecture, make)
    return model if architecture == model.architecture else ir.Model(architecture, model.parameters)


def make(wanted: Wanted) -> tuple[ir.Tabulated, ...]:
    """Compile what a program wants: one table, or the bands of a function on a long range."""
    known = functions.get(wanted.name)
    if (wanted.factor, wanted.scale, wanted.shift) != (1.0, 1.0, 0.0):
        known = functions.affine(known, wanted.factor, wanted.scale, wanted.shift)
    low, high, error = wanted.low, wanted.high, wanted.error
    f, F = wanted.frac_in, wanted.frac_out
    if wanted.tight:
        bands = approx.compile_bands(known, low, high, wanted.relative, absolute=error, frac=f, out_frac=F)
        tables = [band.table for band in bands]
    else:
        one = approx.compile_table(known, low, high, error, relative=wanted.relative, frac=f, out_frac=F)
        tables = [one]
    return tuple(
        ir.Tabulated(
            key=wanted.band(k),
            low=t.low,
            high=t.high,
            step_bits=t.step_bits,
            cell_bits=t.cell_bits,
            degree=t.degree,
            frac_out=t.frac_out,
            error=t.error + wanted.tails,
            coefficients=t.coefficients,
        )
        for k, t in enumerate(tables)
    )
