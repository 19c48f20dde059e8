"""Import of PyTorch modules through ``torch.export``: no code of the module runs anywhere but here.

What becomes secret is written in :mod:`privinfer.graph.build`; Python numbers in ``forward`` are public.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import build, ir, torch_layers, torch_math, torch_modules, torch_ops
from privinfer.graph import functions as functions_of
from privinfer.graph.build import Value, refuse
from privinfer.graph.torch_ops import APART, Args, Moved

if TYPE_CHECKING:
    import torch

_NO_OPS = (
    "alias", "clone", "contiguous", "detach", "detach_", "dropout", "dropout_", "feature_dropout",
    "lift_fresh_copy",
)  # fmt: skip
_RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_copy")
# operators that do not mind where the batch is
_CARRIED = frozenset(
    (*_NO_OPS, *torch_layers.SMOOTH, "linear", "addmm", "mm", "add", "sub", "rsub", "mul", "div", "neg")
)
_CARRIED |= {"relu", "relu_", "gelu", "to", "_to_copy"}


def from_torch(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    ranges: build.Ranges | None = None,
    *,
    outputs: Sequence[str] | None = None,
    functions: torch_modules.Functions | None = None,
    precision: ir.Precision = ir.Precision(),  # noqa: B008 - frozen
) -> ir.Model:
    """Read a PyTorch module in evaluation mode.

    Parameters are secret weights, and so is every tensor the module holds, except for indices. Python
    numbers in ``forward`` (``x * 0.5``) and tensors it makes of them (``torch.ones``) are public.

    Parameters
    ----------
    module : torch.nn.Module
        The model; its training mode is restored afterwards.
    shapes : mapping of tuple of int
        For each argument of ``forward`` its shape, axis 0 being the batch: ``{"xray": (1, 1, 28, 28)}``.
        The model then runs with any batch.
    ranges : mapping of (low, high), optional
        What the inputs' values are promised to lie in; :data:`privinfer.graph.ir.DEFAULT_RANGE` otherwise.
        Under the name of a node, what goes into its function, or for a norm its variance.
    outputs : sequence of str, optional
        Names of the outputs; else the keys of the dict that ``forward`` returns, or ``output``, or
        ``output_0``, ``output_1`` and so on.
    functions : mapping of (callable, low, high), optional
        By paths of submodules, functions of one variable that take their places: elementwise on float64
        arrays, and the range that what goes in has to keep to. Their tables are public.
    precision : Precision, optional
        Declared with the model.

    Returns
    -------
    Model
        Architecture and parameters.

    Raises
    ------
    ConfigError
        Names, shapes or ranges do not fit the module.
    ModelUnsupported
        The module holds what privinfer cannot run; the message names every such node.
    """
    try:
        import torch  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise ConfigError("torch is not installed", hint="pip install 'privinfer[torch]'") from None
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(f"a model is a torch.nn.Module that is not scripted, not {type(module).__name__}")
    names = _arguments(module, shapes)
    batches = {tuple(shapes[n])[:1] for n in names}
    if len(batches) != 1 or () in batches:
        raise ConfigError("axis 0 of every input has to be the batch, of one size for all")
    own = torch_modules.register(module, functions or {})
    inner = any(n not in names for n in ranges or {})
    checked = {} if inner else build.check_ranges(ranges, names)
    with torch_modules.standing_in(torch, module, own):
        program = _export(torch, module, names, shapes)
    if inner:
        nodes = {_name(n) for n in program.graph.nodes if n.op == "call_function"}
        checked = build.check_ranges(ranges, names, nodes)
    importer = _Importer(torch, build.Builder(batches.pop()[0], checked))
    return importer.model(program, names, shapes, outputs, precision)


def _arguments(module: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the inputs in the order of ``forward``; missing and unknown ones are refused."""
    for name, shape in shapes.items():
        sizes = shape if isinstance(shape, Sequence) else ()
        if not sizes or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in sizes):
            raise ConfigError(f"input {name!r}: its shape has to be positive integers, the batch first")
    taken = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in taken if p.name in shapes]
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        names += [n for n in shapes if n not in names]
    named = ", ".join(p.name for p in taken)
    for p in taken:
        needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if needed and p.name not in shapes:
            raise ConfigError(f"the shape of input {p.name!r} is missing", hint=f"forward takes: {named}")
    for name in shapes:
        if name not in names:
            raise ConfigError(
                f"a shape is given for {name!r}, which is no input", hint=f"forward takes: {named}"
            )
    if not names:
        raise ConfigError("a model needs at least one input")
    return names


def _export(torch: Any, module: Any, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Export in evaluation mode, functional, with the operators otherwise as they were written."""
    modes = {m: m.training for m in module.modules()}
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    example = {n: torch.zeros(tuple(shapes[n]), dtype=dtype) for n in names}
    signature = inspect.signature(module.forward).parameters
    positional = [
        n for n in names if n in signature and signature[n].kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    args = tuple(example.pop(n) for n in positional)
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch prints pages on its way to an exception
    try:
        module.eval()
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, args, example, strict=False)
            # makes operators in place functional; costs ten times the export, so only where it has to be
            calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
            in_place = any(getattr(getattr(t, "_schema", None), "is_mutable", True) for t in calls)
            return program.run_decompositions({}) if in_place else program
    except Exception as e:  # torch's own and whatever forward raises
        raise ModelUnsupported(
            build.load_error("torch.export cannot read the module", e),
            hint="forward may not branch on values (never: it would show private data) nor use other shapes",
        ) from e
    finally:
        logging.disable(logged)
        for m, mode in modes.items():
            m.training = mode


def _output_names(torch: Any, program: Any, given: Sequence[str] | None, count: int) -> list[str]:
    """Names of the outputs in the order of the graph."""
    tree = torch.utils._pytree.tree_unflatten(range(count), program.call_spec.out_spec)

    def walk(part: Any, path: str) -> Iterator[str]:
        if isinstance(part, Mapping):
            for key, value in part.items():
                yield from walk(value, f"{path}_{key}" if path else str(key))
        elif isinstance(part, list | tuple):
            for k, value in enumerate(part):
                yield from walk(value, f"{path or 'output'}_{k}")
        else:
            yield path or "output"

    names = list(walk(tree, ""))
    if len(names) != count:
        raise ModelUnsupported("not yet: forward returns something else than tensors, tuples and dicts")
    if given is None:
        return names
    if isinstance(given, str) or len(given) != count or len(set(given)) != count:
        raise ConfigError(f"the module has {count} outputs, which need as many different names")
    return list(given)


class _Importer(
    torch_ops.Shapes,
    torch_math.Arithmetic,
    torch_layers.Linear,
    torch_layers.Pools,
    torch_layers.Activations,
    torch_layers.Recurrent,
):
    """One pass over the nodes of an exported program."""

    def __init__(self, torch: Any, builder: build.Builder) -> None:
        super().__init__(torch, builder)
        self.env: dict[Any, Any] = {}
        self.broken: set[Any] = set()
        self.table: dict[str, Callable[[Args], Any]] = {op: self.smooth(op) for op in torch_layers.SMOOTH}
        self.table |= {name[4:]: getattr(self, name) for name in dir(self) if name.startswith("_op_")}
        self.table |= dict.fromkeys(_NO_OPS, self._same) | dict.fromkeys(_RESHAPES, self._reshape)
        self.table["relu_"] = self.table["relu"]

    def model(
        self,
        program: Any,
        names: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str] | None,
        precision: ir.Precision,
    ) -> ir.Model:
        """Convert all nodes."""
        signature = program.graph_signature
        kinds = self.torch.export.graph_signature
        tensors = {**program.state_dict, **program.constants}
        specs = {s.arg.name: s for s in signature.input_specs}
        inputs = iter(names)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind is kinds.InputKind.USER_INPUT:
                    if isinstance(spec.arg, kinds.TensorArgument):
                        name = next(inputs)
                        self.env[node] = self.b.input(name, shapes[name])
                else:
                    self.env[node] = tensors[spec.target]
            elif node.op == "call_function":
                op = _operator(node)
                self.node = _name(node), f"aten.{op}" if str(node.target).startswith("aten.") else op
                result = self.b.attempt(*self.node, lambda n=node, o=op: self._convert(n, o))  # type: ignore[misc]
                if result is None:
                    self.broken.add(node)
                self.env[node] = result
            else:  # the branches of control flow, which is refused where it uses them
                self.env[node] = None
        if any(s.kind is not kinds.OutputKind.USER_OUTPUT for s in signature.output_specs):
            raise ModelUnsupported("never: forward changes the module's own state or its input")
        (last,) = (n for n in program.graph.nodes if n.op == "output")
        shown = _output_names(self.torch, program, outputs, len(last.args[0]))
        values = [self.env.get(v) if v is not None else None for v in last.args[0]]
        self.b.problems += sorted({f"{v.node}: {APART}" for v in values if isinstance(v, Moved)})
        return self.b.finish(list(zip(shown, values, strict=True)), precision)

    def _convert(self, node: Any, op: str) -> Any:
        if op.startswith(("_assert", "sym_constrain")):
            return ()
        if node.target is operator.getitem:
            parent, k = node.args
            if parent in self.broken:
                return None
            part = self.env[parent][k]
            if part is None and node.users:
                refuse("not yet: the second result of its operator")
            return () if part is None else part
        deps = node.all_input_nodes
        private = any(_private(self.env.get(d)) for d in deps) or any(d in self.broken for d in deps)
        if not private:
            return self._constant(node, op)
        convert = self.table.get(op)
        if convert is None:
            refuse(build.advice(op, last=any(u.op == "output" for u in node.users)))
        if any(d in self.broken for d in deps):
            return None
        a = self._bind(node)
        meta = node.meta.get("val")
        a.out = tuple(meta.shape) if hasattr(meta, "shape") else ()
        if op in _CARRIED and any(isinstance(v, Moved) for v in vars(a).values()):
            return self._carried(a, convert, op)
        return convert(a)

    def _carried(self, a: Args, convert: Callable[[Args], Any], op: str) -> Moved:
        """An operator on values whose batch is elsewhere, all in one place: on the values themselves."""
        moved = {k: v for k, v in vars(a).items() if isinstance(v, Moved)}
        first = next(iter(moved.values()))
        where = {(v.at, v.fused, v.rank) for v in moved.values()}
        others = [v for k, v in vars(a).items() if k not in moved and k != "out"]
        if op in ("linear", "addmm", "mm"):
            fits = first.at != first.rank - 1 and len(moved) == 1
        else:
            tensors = [v for v in others if isinstance(v, self.torch.Tensor)]
            fits = not any(isinstance(v, Value) for v in others) and all(v.numel() == 1 for v in tensors)
        if len(where) > 1 or not fits:
            self.value(first)
        result = convert(Args(**vars(a) | {k: v.value for k, v in moved.items()}))
        return Moved(result, first.at, first.fused, first.node)

    def _constant(self, node: Any, op: str) -> Any:
        """Compute what depends on no input."""
        if not isinstance(node.target, self.torch._ops.OpOverload):
            refuse(build.advice(op, last=False))
        if self.torch.Tag.nondeterministic_seeded in node.target.tags:
            refuse("never: a random result cannot be agreed on")
        args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
        try:
            with self.torch.no_grad():
                result = node.target(*args, **kwargs)
        except Exception:  # torch raises many kinds
            refuse("its constant result cannot be computed")
        parts = [self.env[d] for d in node.all_input_nodes]
        if all(id(p) in self.public for v in parts for p in (v if isinstance(v, list | tuple) else [v])):
            made = result if isinstance(result, list | tuple) else [result]
            self.public.update(id(v) for v in made if isinstance(v, self.torch.Tensor))
        return result

    def _resolve(self, part: Any) -> Any:
        return self.torch.fx.node.map_arg(part, lambda n: self.env[n])

    def _bind(self, node: Any) -> Args:
        """Arguments by the names of the operator's schema."""
        a = Args()
        args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
        for k, argument in enumerate(node.target._schema.arguments):
            value = args[k] if k < len(args) else kwargs.get(argument.name, argument.default_value)
            setattr(a, argument.name, value)
        return a

    def _same(self, a: Args) -> Value | Moved:
        x = next(iter(vars(a).values()))
        if getattr(a, "train", False):
            refuse("never: dropout in training mode is random, call .eval() before the export")
        return x if isinstance(x, Moved) else self.value(x)

    def _op_native_dropout(self, a: Args) -> tuple[Value | Moved, None]:
        return self._same(a), None

    def _op_to(self, a: Args) -> Value:
        dtype = getattr(a, "dtype", None)
        if dtype is not None and not dtype.is_floating_point:
            refuse(
                "not yet: a private value in another type than floating point, replace an index by a one-hot "
                "input and a linear layer"
            )
        return self.value(a.self)

    _op__to_copy = _op_to

    def _op_function(self, a: Args) -> Value:
        return self.b.function(self.value(a.x), a.name, *functions_of.get(a.name).domain)


def _private(v: Any) -> bool:
    return any(isinstance(p, Value | Moved) for p in (v if isinstance(v, list | tuple) else [v]))


def _operator(node: Any) -> str:
    """Name of the operator without namespace and overload."""
    parts = str(node.target).split(".")
    return (
        parts[1]
        if parts[0] in ("aten", "privinfer") and len(parts) > 1
        else getattr(node.target, "__name__", parts[0])
    )


def _name(node: Any) -> str:
    """Path of the torch module a node stems from, if that is one of torch's own layers; else fx's name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if stack and len(stack[-1]) == 2:
        path, kind = stack[-1]
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        if path and kind.startswith("torch.nn.modules.") and ".container." not in kind:
            return str(path)
    return str(node.name)
