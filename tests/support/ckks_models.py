"""Small architectures that between them have everything that the `ckks` backend computes."""

from __future__ import annotations

from privinfer.graph import ir

SMOOTH = (0.3, 0.45, 0.2, -0.05)  # degree 3
STEEP = (0.1, 0.5, 0.0, -0.2, 0.0, 0.1, 0.05, 0.02)  # degree 7


def network(*nodes: ir.Node, inputs: tuple[ir.Input, ...], **outputs: str) -> ir.Architecture:
    """Outputs by name, each with the value that it shows."""
    return ir.Architecture(inputs, nodes, tuple(ir.Output(name, value) for name, value in outputs.items()))


def row(name: str, size: int) -> ir.Input:
    """An input in [-1, 1]."""
    return ir.Input(name, (size,), -1.0, 1.0)


PICTURE = ir.Input("picture", (1, 8, 8), -1.0, 1.0)

DENSE = network(ir.Node("d", ir.Linear(6, 4), ("x",)), inputs=(row("x", 6),), y="d")

FUSION = network(  # three sources, each with a layer of its own, joined
    ir.Node("x", ir.Linear(16, 8), ("xray",)),
    ir.Node("px", ir.Polynomial(-8, 8, SMOOTH), ("x",)),
    ir.Node("g", ir.Linear(12, 8), ("dna",)),
    ir.Node("pg", ir.Polynomial(-8, 8, SMOOTH), ("g",)),
    ir.Node("all", ir.Concat(1), ("px", "pg", "blood")),
    ir.Node("h", ir.Linear(20, 8), ("all",)),
    ir.Node("ph", ir.Polynomial(-10, 10, SMOOTH), ("h",)),
    ir.Node("d", ir.Linear(8, 3), ("ph",)),
    inputs=(row("xray", 16), row("dna", 12), row("blood", 4)),
    y="d",
)

PICTURES = network(  # convolution, batch normalisation, pool, residual sum
    ir.Node("c1", ir.Conv2d(1, 2, (3, 3), (1, 1), (1, 1, 1, 1)), ("picture",)),
    ir.Node("b1", ir.Scale(1, 2), ("c1",)),
    ir.Node("p1", ir.Polynomial(-8, 8, SMOOTH), ("b1",)),
    ir.Node("c2", ir.Conv2d(2, 2, (3, 3), (1, 1), (1, 1, 1, 1)), ("p1",)),
    ir.Node("sum", ir.Add(), ("c2", "p1")),
    ir.Node("p2", ir.Polynomial(-12, 12, SMOOTH), ("sum",)),
    ir.Node("pool", ir.AvgPool2d((2, 2), (2, 2)), ("p2",)),
    ir.Node("flat", ir.Reshape((32,)), ("pool",)),
    ir.Node("d", ir.Linear(32, 3), ("flat",)),
    inputs=(PICTURE,),
    y="d",
)

TWO = network(  # two outputs, one of which shows what the other is made of
    ir.Node("h", ir.Linear(6, 5), ("x",)),
    ir.Node("p", ir.Polynomial(-8, 8, SMOOTH), ("h",)),
    ir.Node("r", ir.Linear(5, 2), ("p",)),
    ir.Node("s", ir.Linear(5, 3), ("p",)),
    inputs=(row("x", 6),),
    risk="r",
    scores="s",
)

SHALLOW = network(  # one activation, one round of refreshes on a ring of four limbs
    ir.Node("h", ir.Linear(6, 4), ("x",)),
    ir.Node("p", ir.Polynomial(-6, 6, SMOOTH), ("h",)),
    ir.Node("d", ir.Linear(4, 2), ("p",)),
    inputs=(row("x", 6),),
    y="d",
)

CASES: dict[str, ir.Architecture] = {
    "dense": DENSE,
    "fusion": FUSION,
    "pictures": PICTURES,
    "two outputs": TWO,
    "product": network(
        ir.Node("a", ir.Linear(6, 4), ("x",)),
        ir.Node("b", ir.Linear(6, 4), ("z",)),
        ir.Node("m", ir.Mul(), ("a", "b")),
        ir.Node("q", ir.Mul(), ("m", "m")),
        inputs=(row("x", 6), row("z", 6)),
        y="q",
    ),
    "moves": network(
        ir.Node("t", ir.Transpose((2, 1)), ("x",)),
        ir.Node("g", ir.Gather(1, (2, 0, -1, 1)), ("t",)),
        ir.Node("s", ir.Sum(2), ("g",)),
        ir.Node("m", ir.Multiply(-0.5), ("s",)),
        ir.Node("o", ir.Shift(0.25), ("m",)),
        ir.Node("p", ir.Polynomial(-8, 8, STEEP), ("o",)),
        inputs=(ir.Input("x", (3, 4), -1.0, 1.0),),
        y="p",
    ),
    "straight polynomial": network(
        ir.Node("p", ir.Polynomial(-4, 4, (0.5, 2.0)), ("x",)), inputs=(row("x", 5),), y="p"
    ),
    "input shown": network(inputs=(row("x", 5),), y="x"),
}
