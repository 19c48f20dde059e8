"""Import of PyTorch modules through ``torch.export``: no code of the module runs anywhere but here.

What becomes secret is written in :mod:`privinfer.graph.build`; Python numbers in ``forward`` are public.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import build, ir
from privinfer.graph.build import Const, Value, refuse

if TYPE_CHECKING:
    import torch

Args = SimpleNamespace
_NO_OPS = (
    "alias", "clone", "contiguous", "detach", "detach_", "dropout", "dropout_", "feature_dropout",
    "lift_fresh_copy",
)  # fmt: skip
_RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_copy")


def from_torch(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    ranges: build.Ranges | None = None,
    *,
    outputs: Sequence[str] | None = None,
    precision: ir.Precision = ir.Precision(),  # noqa: B008 - frozen
) -> ir.Model:
    """Read a PyTorch module in evaluation mode.

    Parameters are secret weights, and so is every tensor the module holds; Python numbers in ``forward``
    that multiply or divide (``x * 0.5``) are public architecture (:class:`privinfer.graph.ir.Multiply`).

    Parameters
    ----------
    module : torch.nn.Module
        The model; its training mode is restored afterwards.
    shapes : mapping of tuple of int
        For each argument of ``forward`` its shape, axis 0 being the batch: ``{"xray": (1, 1, 28, 28)}``.
        The model then runs with any batch.
    ranges : mapping of (low, high), optional
        What the inputs' values are promised to lie in; :data:`privinfer.graph.ir.DEFAULT_RANGE` otherwise.
    outputs : sequence of str, optional
        Names of the outputs; else the keys of the dict that ``forward`` returns, or ``output``, or
        ``output_0``, ``output_1`` and so on.
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
    checked = build.check_ranges(ranges, names)
    batches = {tuple(shapes[n])[:1] for n in names}
    if len(batches) != 1 or () in batches:
        raise ConfigError("axis 0 of every input has to be the batch, of one size for all")
    importer = _Importer(torch, build.Builder(batches.pop()[0], checked))
    return importer.model(_export(torch, module, names, shapes), names, shapes, outputs, precision)


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


class _Importer:
    """One pass over the nodes of an exported program."""

    def __init__(self, torch: Any, builder: build.Builder) -> None:
        self.torch = torch
        self.b = builder
        self.env: dict[Any, Any] = {}
        self.broken: set[Any] = set()
        self.table: dict[str, Callable[[Args], Any]] = {
            name[4:]: getattr(self, name) for name in dir(self) if name.startswith("_op_")
        }
        self.table |= dict.fromkeys(_NO_OPS, self._same) | dict.fromkeys(_RESHAPES, self._reshape)

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
                name, op = _name(node), _operator(node)
                label = f"aten.{op}" if str(node.target).startswith("aten.") else op
                result = self.b.attempt(name, label, lambda n=node, o=op: self._convert(n, o))  # type: ignore[misc]
                if result is None:
                    self.broken.add(node)
                self.env[node] = result
            else:  # the branches of control flow, which is refused where it uses them
                self.env[node] = None
        if any(s.kind is not kinds.OutputKind.USER_OUTPUT for s in signature.output_specs):
            raise ModelUnsupported("never: forward changes the module's own state or its input")
        (last,) = (n for n in program.graph.nodes if n.op == "output")
        shown = _output_names(self.torch, program, outputs, len(last.args[0]))
        pairs = zip(shown, last.args[0], strict=True)
        return self.b.finish([(n, self.env.get(v) if v is not None else None) for n, v in pairs], precision)

    def _convert(self, node: Any, op: str) -> Any:
        if op.startswith(("_assert", "sym_constrain")):
            return ()
        if node.target is operator.getitem:
            parent, k = node.args
            return None if parent in self.broken else self.env[parent][k]
        deps = node.all_input_nodes
        private = any(isinstance(self.env.get(d), Value) for d in deps) or any(d in self.broken for d in deps)
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
        return convert(a)

    def _constant(self, node: Any, op: str) -> Any:
        """Compute what depends on no input."""
        if not isinstance(node.target, self.torch._ops.OpOverload):
            refuse(build.advice(op, last=False))
        if self.torch.Tag.nondeterministic_seeded in node.target.tags:
            refuse("never: a random result cannot be agreed on")
        args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
        try:
            with self.torch.no_grad():
                return node.target(*args, **kwargs)
        except Exception:  # torch raises many kinds
            refuse("its constant result cannot be computed")

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

    # --- operands

    def const(self, v: Any) -> Const:
        """Give a tensor, which is secret, or a Python number, which is public."""
        if isinstance(v, self.torch.Tensor):
            if v.is_quantized or v.is_complex() or v.layout is not self.torch.strided:
                refuse("not yet: quantised, complex or sparse weights, export floating-point weights")
            if v.dtype in (self.torch.int8, self.torch.uint8):
                refuse(f"not yet: weights of type {v.dtype}, export the model with floating-point weights")
            return Const(v.detach().cpu().to(self.torch.float64).numpy())
        if isinstance(v, bool) or not isinstance(v, int | float):
            refuse(f"not yet: an operand of type {type(v).__name__}")
        return Const(np.asarray(float(v)), public=True)

    def operand(self, v: Any) -> Value | Const:
        return v if isinstance(v, Value) else self.const(v)

    def value(self, v: Any) -> Value:
        return v if isinstance(v, Value) else refuse("not yet: a constant where a private value belongs")

    def weights(self, v: Any) -> Any:
        if isinstance(v, Value):
            refuse("not yet: the product of two private values")
        if isinstance(v, self.torch.Tensor) and not v.is_quantized and not v.is_floating_point():
            refuse(f"not yet: weights of type {v.dtype}, export the model with floating-point weights")
        return None if v is None else self.b.weights(self.const(v))

    def times(self, v: Any, factor: float) -> Value | Const:
        """Operand times a Python number."""
        if factor == 1:
            return self.operand(v)
        if isinstance(v, Value):
            return self.b.multiply(v, float(factor))
        c = self.const(v)
        return Const(c.array * float(factor), c.public)

    # --- operators

    def _same(self, a: Args) -> Value:
        x = self.value(next(iter(vars(a).values())))
        if getattr(a, "train", False):
            refuse("never: dropout in training mode is random, call .eval() before the export")
        return x

    def _op_native_dropout(self, a: Args) -> tuple[Value, None]:
        return self._same(a), None

    def _reshape(self, a: Args) -> Value:
        return self.b.reshape(self.value(a.self), a.out)

    def _op_to(self, a: Args) -> Value:
        dtype = getattr(a, "dtype", None)
        if dtype is not None and not dtype.is_floating_point:
            refuse("not yet: a private value in another type than floating point")
        return self.value(a.self)

    _op__to_copy = _op_to

    def _op_linear(self, a: Args) -> Value:
        x, w = self.value(a.input), self.weights(a.weight)
        if w.ndim != 2:
            refuse(f"not yet: weights with {w.ndim} axes instead of 2")
        return self.b.linear(x, w.T, self.weights(a.bias))

    def _op_addmm(self, a: Args) -> Value:
        y = self.b.matmul(self.value(a.mat1), self.weights(a.mat2) * float(a.alpha))
        return self.b.add(y, self.times(a.self, a.beta))

    def _op_matmul(self, a: Args) -> Value:
        right = getattr(a, "other", None) if hasattr(a, "other") else a.mat2
        if not isinstance(a.self, Value):
            refuse("not yet: a constant left operand, replace by x @ w")
        return self.b.matmul(a.self, self.weights(right))

    _op_mm = _op_matmul

    def _op_conv2d(self, a: Args) -> Value:
        x, w = self.value(a.input), self.weights(a.weight)
        if getattr(a, "transposed", False):
            refuse(build.advice("conv_transpose2d", last=False))
        if x.rank != 4 or w.ndim != 4:
            refuse("not yet: convolution of anything but (batch, channels, height, width)")
        stride, dilation = _pair(a.stride), _pair(a.dilation)
        pads = build.NO_PAD
        if a.padding == "same":
            x = self.b.plain(x)
            sizes = zip(x.shape[1:], w.shape[2:], stride, dilation, strict=True)
            (t, d), (left, r) = (build.same_padding(*s, upper=True) for s in sizes)
            pads = t, left, d, r
        elif a.padding != "valid":
            pads = _pair(a.padding) * 2
        return self.b.conv(x, w, self.weights(a.bias), stride, pads, dilation, a.groups)

    _op_convolution = _op_conv2d

    def _batch_norm(self, a: Args) -> Value:
        if getattr(a, "training", False) or a.running_mean is None or a.running_var is None:
            refuse("never with statistics of the batch: call .eval() and keep track_running_stats")
        x = self.value(a.input)
        mean, var = self.weights(a.running_mean), self.weights(a.running_var)
        gamma = np.ones_like(mean) if a.weight is None else self.weights(a.weight)
        beta = np.zeros_like(mean) if a.bias is None else self.weights(a.bias)
        return self.b.batch_norm(x, gamma, beta, mean, var, a.eps)

    def _op_batch_norm(self, a: Args) -> Value:
        return self._batch_norm(a)

    def _op__native_batch_norm_legit_no_training(self, a: Args) -> tuple[Value, None, None]:
        return self._batch_norm(a), None, None

    def _op__native_batch_norm_legit(self, a: Args) -> None:
        refuse("never with statistics of the batch: call .eval() and keep track_running_stats")

    def _op_avg_pool2d(self, a: Args) -> Value:
        kernel = _pair(a.kernel_size)
        stride = _pair(a.stride) if a.stride else kernel
        pads: build.Pads = _pair(a.padding) * 2
        if a.divisor_override not in (None, math.prod(kernel)):
            refuse("not yet: a divisor of its own")
        count = bool(a.count_include_pad) or a.divisor_override is not None
        return self.b.avg_pool(self.value(a.self), kernel, stride, pads, count, bool(a.ceil_mode))

    def _op_adaptive_avg_pool2d(self, a: Args) -> Value:
        size = a.output_size if isinstance(a.output_size, Sequence) else [a.output_size]
        return self.b.adaptive_pool(self.value(a.self), (size[0], size[-1]))

    _op__adaptive_avg_pool2d = _op_adaptive_avg_pool2d

    def _op_mean(self, a: Args) -> Value:
        dim = getattr(a, "dim", None)
        axes = [dim] if isinstance(dim, int) else list(dim or ())
        return self.b.mean(self.value(a.self), axes, bool(getattr(a, "keepdim", False)))

    def _op_relu(self, a: Args) -> Value:
        return self.b.relu(self.value(a.self))

    _op_relu_ = _op_relu

    def _op_clamp(self, a: Args) -> Value:
        if a.min != 0 or isinstance(a.min, self.torch.Tensor) or getattr(a, "max", None) is not None:
            refuse("not yet: limits other than (0, none), replace by ReLU")
        return self.b.relu(self.value(a.self))

    _op_clamp_min = _op_clamp

    def _op_add(self, a: Args) -> Value:
        return self.b.add(self.operand(a.self), self.times(a.other, a.alpha))

    def _op_sub(self, a: Args) -> Value:
        return self.b.add(self.operand(a.self), self.times(a.other, a.alpha), sign=-1.0)

    def _op_rsub(self, a: Args) -> Value:
        return self.b.add(self.operand(a.other), self.times(a.self, a.alpha), sign=-1.0)

    def _op_mul(self, a: Args) -> Value:
        return self.b.mul(self.operand(a.self), self.operand(a.other))

    def _op_div(self, a: Args) -> Value:
        if getattr(a, "rounding_mode", None) is not None:
            refuse("not yet: division with rounding")
        return self.b.div(self.operand(a.self), self.operand(a.other))

    def _op_neg(self, a: Args) -> Value:
        return self.b.multiply(self.value(a.self), -1.0)

    def _op_cat(self, a: Args) -> Value:
        return self.b.concat([self.operand(x) for x in a.tensors], a.dim)

    def _op_permute(self, a: Args) -> Value:
        return self.b.transpose(self.value(a.self), a.dims)

    def _op_transpose(self, a: Args) -> Value:
        x = self.value(a.self)
        order = list(range(x.rank))
        order[a.dim0], order[a.dim1] = order[a.dim1], order[a.dim0]
        return self.b.transpose(x, order)

    def _op_t(self, a: Args) -> Value:
        x = self.value(a.self)
        return self.b.transpose(x, list(range(x.rank))[::-1])

    def _op_squeeze(self, a: Args) -> Value:
        dim = getattr(a, "dim", None)
        if dim is None:
            refuse("never: without axes it may touch the batch axis (axis 0), name the axes")
        return self.b.squeeze(self.value(a.self), [dim] if isinstance(dim, int) else dim)

    def _op_unsqueeze(self, a: Args) -> Value:
        return self.b.unsqueeze(self.value(a.self), [a.dim])

    def _op_expand(self, a: Args) -> Value:
        x = self.value(a.self)
        if a.out != (self.b.batch, *x.shape):
            refuse("not yet: repeating a private value along an axis")
        return x

    def _op_pad(self, a: Args) -> Value:
        x = self.value(a.self)
        if getattr(a, "mode", "constant") != "constant":
            refuse("not yet: padding other than zeros around height and width")
        pairs = list(zip(a.pad[::2], a.pad[1::2], strict=True))[::-1]
        pairs = [(0, 0)] * (x.rank - len(pairs)) + pairs
        return self.b.pad(x, [p[0] for p in pairs], [p[1] for p in pairs], float(a.value or 0))

    _op_constant_pad_nd = _op_pad


def _pair(v: Any) -> tuple[int, int]:
    sizes = list(v) if isinstance(v, Sequence) else [v]
    if len(sizes) not in (1, 2):
        refuse(f"{len(sizes)} window sizes instead of 2")
    return int(sizes[0]), int(sizes[-1])


def _operator(node: Any) -> str:
    """Name of the operator without namespace and overload."""
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else getattr(node.target, "__name__", parts[0])


def _name(node: Any) -> str:
    """Path of the torch module a node stems from, if that is one of torch's own layers; else fx's name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if stack and len(stack[-1]) == 2:
        path, kind = stack[-1]
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        if path and kind.startswith("torch.nn.modules.") and ".container." not in kind:
            return str(path)
    return str(node.name)
