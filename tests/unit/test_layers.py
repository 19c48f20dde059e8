"""The shape of the package: imports point down, the public face is small, randomness has one source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import privinfer

PACKAGE = Path(privinfer.__file__).resolve().parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From top to bottom; a module imports from its own layer and from those below it.
LAYERS = (
    "cli",
    "runtime",
    "plan",
    "backends",
    "protocols",
    "io",
    "session",
    "transport",
    "graph",
    "insecure",
    "errors",
)
KERNELS = "_kernels"  # compiled, imports nothing of ours

PUBLIC = [
    "ConfigError",
    "ConsentError",
    "InputError",
    "IntegrityError",
    "Model",
    "ModelUnsupported",
    "PrecisionError",
    "PrivinferError",
    "ProtocolViolation",
    "ReplayError",
    "Result",
    "Session",
    "TransportError",
    "fix",
    "from_onnx",
    "from_torch",
    "insecure",
    "run_local",
    "to_polynomial",
    "validate",
]


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str | None:
    """Layer of a module; None for the package itself, which sits above all."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Everything a file imports, at its head or inside a function, as full dotted names."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            argument = node.args[0] if node.args else None
            if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value)


def test_every_module_has_a_layer() -> None:
    assert len(FILES) > 40
    for path in FILES:
        own = layer(module_of(path))
        assert own is None or own in LAYERS, f"{path} belongs to no layer"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    own = layer(module_of(path))
    for line, name in imports(path):
        if name.partition(".")[0] != "privinfer" or own is None:
            continue
        other = layer(name)
        if other == KERNELS or name == "privinfer.__version__":
            continue
        assert other in LAYERS, f"{path}:{line} imports {name}, which is in no layer"
        assert LAYERS.index(own) <= LAYERS.index(other), (
            f"{path}:{line}: {own} imports {name}, which is above"
        )


def test_modules_import_each_other_in_no_circle() -> None:
    """Not only between layers: within one too."""
    names = {module_of(p) for p in FILES}
    graph = {
        module_of(p): {
            n if n in names else n.rpartition(".")[0]
            for _, n in imports(p)
            if n in names or n.rpartition(".")[0] in names
        }
        - {"privinfer", module_of(p)}
        for p in FILES
        if p.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for below in sorted(graph.get(name, ())):
                visit(below, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_the_public_face() -> None:
    """A new name is a decision: it belongs here and into the documentation."""
    assert privinfer.__all__ == PUBLIC
    assert len(PUBLIC) <= 20
    for name in PUBLIC:
        assert getattr(privinfer, name).__doc__, f"{name} is not documented"


# -- randomness and serialisation ------------------------------------------------------------------

FORBIDDEN_MODULES = (
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "random",
    "numpy.random",
)
FORBIDDEN_CALLS = {
    # of torch: anything that draws, seeds, or unpickles
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal"),
    *("bernoulli", "multinomial", "poisson", "manual_seed", "seed", "initial_seed", "Generator"),
}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain, or what there is of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_pickle_and_no_statistical_generator(path: Path) -> None:
    """A mask from a statistical generator, or a peer's bytes in pickle, would end all privacy."""
    for line, name in imports(path):
        for forbidden in FORBIDDEN_MODULES:
            assert name != forbidden, f"{path}:{line}"
            assert not name.startswith(f"{forbidden}."), f"{path}:{line}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            assert not name.startswith(("np.random", "numpy.random", "torch.random")), f"{path}:{node.lineno}"
            root, _, last = name.rpartition(".")
            if root in ("torch", "torch.cuda", "torch.nn.init"):
                assert last not in FORBIDDEN_CALLS, f"{path}:{node.lineno}: {name}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), f"{path}:{node.value.lineno}"
            assert node.value.value is False, f"{path}:{node.value.lineno}"


def test_seeds_come_from_the_operating_system() -> None:
    """`secrets` is imported where seeds, nonces and names are made, and nowhere else in a protocol's file."""
    users = {module_of(p) for p in FILES if any(n.partition(".")[0] == "secrets" for _, n in imports(p))}
    below = {u for u in users if layer(u) in ("protocols", "backends", "graph")}
    # the model owner draws its salt, and noise is drawn from there without a seed between
    assert below <= {
        "privinfer.protocols.randomness",
        "privinfer.backends.mpc.model_owner",
        "privinfer.protocols.gaussian",
    }


def test_importing_privinfer_is_light() -> None:
    """No torch, onnx or tenseal: a hospital that only brings inputs has none of them."""
    code = (
        "import sys, privinfer; "
        "heavy = ('torch', 'onnx', 'onnxruntime', 'scipy', 'pandas', 'tenseal'); "
        "heavy += ('pydicom', 'pyarrow', 'bed_reader'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    assert out.stdout.strip() == "[]"
