"""What stands against a model, node by node, and the replacements that do not change what it computes.

:func:`validate` runs an importer and listens; :func:`fix` rewrites a model of ONNX or torch before it is
imported. Nothing that changes the function is replaced unasked: where another operator would have to take
the place of one, :func:`validate` says so and the model owner decides, and trains again.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import build_core

if TYPE_CHECKING:
    import onnx
    import torch

Shapes = Mapping[str, tuple[int, ...]]

SUPPORTED, REPLACEABLE, NOT_YET, NEVER = VERDICTS = ("supported", "replaceable", "not yet", "never")
MAX_FOLDED = 1 << 24  # values of a constant that is computed beforehand
OLDEST_OPSET, NEW_OPSET = 7, 17
DEQUANTISED = 19
_FINAL = ("Softmax", "LogSoftmax", "Sigmoid")
_DRAWN = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is said of one node.

    Attributes
    ----------
    node : str
        Its name; empty where it is about the model as a whole.
    operator : str
        What it computes, by the source framework's name.
    verdict : str
        ``"supported"``; ``"replaceable"`` by what the advice names, which is for the model owner to do;
        ``"not yet"``; or ``"never"``, where the answer would show what has to stay private.
    advice : str
        Why, and what could help.
    """

    node: str
    operator: str
    verdict: str
    advice: str = ""

    def __str__(self) -> str:
        where = f"{self.node} ({self.operator})" if self.node else self.operator
        return f"{self.verdict:<11} {where}" + (f": {self.advice}" if self.advice else "")


class Findings(list[Finding]):
    """All findings, in the order of the nodes."""

    @property
    def supported(self) -> bool:
        """Whether the whole model can be imported."""
        return all(f.verdict == SUPPORTED for f in self)

    def __str__(self) -> str:
        counts = Counter(f.verdict for f in self)
        head = f"{len(self)} nodes: " + (
            ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v]) or "nothing to import"
        )
        against = [str(f) for v in reversed(VERDICTS) for f in self if f.verdict == v != SUPPORTED]
        fine = Counter(f.operator for f in self if f.verdict == SUPPORTED)
        known = ", ".join(f"{op} x {k}" if k > 1 else op for op, k in sorted(fine.items()))
        return "\n".join([head, *against, *([f"{SUPPORTED:<11} {known}"] if known else [])])


@dataclass(frozen=True, slots=True)
class Replacement:
    """One change that :func:`fix` made: which node or module, what it was, what is there now."""

    node: str
    operator: str
    by: str

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.by}"


class Replacements(list[Replacement]):
    """All changes that were made."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing was replaced"


def validate(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | torch.nn.Module, shapes: Shapes | None = None
) -> Findings:
    """Say of every node of a model whether it can run privately, and if not, why.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or torch.nn.Module
        The model.
    shapes : mapping of tuple
        For torch, as in :func:`privinfer.from_torch`.

    Returns
    -------
    Findings
        A list of :class:`Finding`, in the order of the nodes; print it to read it. Whether values fit the
        numbers of bits is another question, which the import answers. What torch.export cannot read is
        one finding without a node.

    Raises
    ------
    ConfigError
        The file cannot be read, or the shapes do not fit the module: that is no matter of operators.
    """
    heard: list[tuple[str, str, str]] = []
    token = build_core.LISTENER.set(heard)
    whole = ""
    try:
        if _is_module(model):
            if shapes is None:
                raise ConfigError("a torch module is validated with shapes", hint='{"x": (1, 3, 32, 32)}')
            from privinfer.graph.from_torch import from_torch  # noqa: PLC0415 - torch is optional

            from_torch(model, shapes)
        else:
            from privinfer.graph.from_onnx import from_onnx  # noqa: PLC0415 - onnx is optional

            from_onnx(model)
    except ModelUnsupported as e:
        whole = e.message
    finally:
        build_core.LISTENER.reset(token)
    found = Findings()
    for node, operator, why in heard:
        if why:
            found.append(Finding(node, operator, verdict(why), why))
        else:
            found.append(Finding(node, operator, SUPPORTED))
    if whole and found.supported:  # nothing is wrong with a node: it is the model as a whole
        found.append(Finding("", "model", verdict(whole), whole))
    return found


def verdict(why: str) -> str:
    """The verdict that a refusal's text amounts to."""
    if "replace by" in why or "leave the label off" in why:
        return REPLACEABLE
    return NEVER if why.startswith("never") or ": never" in why else NOT_YET


def fix(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | torch.nn.Module,
    *,
    shapes: Shapes | None = None,
    final: bool = False,
) -> tuple[Any, Replacements]:
    """Replace what can be replaced without changing the function of a model.

    ONNX: local functions are put in line, opsets before 7 are converted, constants are computed beforehand
    (also dequantised weights), Dropout and Identity go. Torch: dropout becomes Identity, synchronised
    batch normalisation the plain one, parametrised weights (weight and spectral norm) the weights they
    are in evaluation mode.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or torch.nn.Module
        The model; it is not changed.
    shapes : mapping of tuple, optional
        For ONNX: shapes of inputs whose axes have no fixed size, batch included. The model then takes no
        other.
    final : bool
        Also leave off a last softmax, log-softmax or sigmoid, so that the receiver sees raw scores and
        applies it in the clear. This does change the outputs.

    Returns
    -------
    model, replacements
        An onnx.ModelProto or a torch.nn.Module in evaluation mode; and a list of :class:`Replacement`.

    Raises
    ------
    ConfigError
        The file cannot be read, or a shape does not fit.
    """
    if _is_module(model):
        if shapes is not None:
            raise ConfigError("shapes belong to a model of ONNX here", hint="pass them to from_torch")
        return _fix_torch(model, final)
    return _fix_onnx(model, dict(shapes or {}), final)


def _is_module(model: object) -> bool:
    """Whether it is a torch module, without importing torch for it."""
    return any(c.__module__.startswith("torch.nn.") and c.__name__ == "Module" for c in type(model).__mro__)


# -- onnx -------------------------------------------------------------------------------------------


def _fix_onnx(model: Any, shapes: dict[str, tuple[int, ...]], final: bool) -> tuple[Any, Replacements]:
    try:
        import onnx  # noqa: PLC0415 - an optional dependency
        from onnx import inliner, version_converter  # noqa: PLC0415
    except ImportError:
        raise ConfigError("onnx is not installed", hint="pip install 'privinfer[onnx]'") from None
    from privinfer.graph.from_onnx import _load  # noqa: PLC0415 - onnx is optional

    proto = onnx.ModelProto()
    proto.CopyFrom(_load(onnx, model))
    done = Replacements()
    if proto.functions:
        names = ", ".join(f.name for f in proto.functions)
        proto = inliner.inline_local_functions(proto)
        done.append(Replacement("model", "local functions", f"put in line: {names}"))
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if versions and versions[0] < OLDEST_OPSET:
        try:
            proto = version_converter.convert_version(proto, NEW_OPSET)
        except Exception as e:  # the converter raises C++ errors of many kinds
            raise ConfigError(build_core.load_error("this opset cannot be converted", e)) from e
        done.append(Replacement("model", f"opset {versions[0]}", f"opset {NEW_OPSET}"))
    _fix_shapes(proto, shapes, done)
    _fold(onnx, proto, done)
    _skip(onnx, proto, done)
    if final:
        _drop_final(proto, done)
    return proto, done


def _fix_shapes(proto: Any, shapes: dict[str, tuple[int, ...]], done: Replacements) -> None:
    inputs = {i.name: i for i in proto.graph.input}
    for name, shape in shapes.items():
        if name not in inputs:
            raise ConfigError(f"a shape is given for {name!r}, which is no input")
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape) or any(
            d.HasField("dim_value") and d.dim_value not in (0, s) for d, s in zip(dims, shape, strict=True)
        ):
            raise ConfigError(f"input {name!r} does not have shape {tuple(shape)}")
        if any(not d.HasField("dim_value") for d in dims[1:]):
            for dim, size in zip(dims[1:], shape[1:], strict=True):  # the batch may stay free
                dim.dim_value = size
            del proto.graph.value_info[:]
            done.append(Replacement(name, "input", f"has shape {tuple(shape)} now, and no other"))


def _tensors(onnx: Any, proto: Any) -> tuple[dict[str, Any], set[str]]:
    """Constants by name, and which of them stand in the code."""
    known = {t.name: t for t in proto.graph.initializer}
    public = set()
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for a in node.attribute:
                if a.name == "value":
                    known[node.output[0]] = a.t
                    public.add(node.output[0])
                elif a.name in ("value_float", "value_floats", "value_int", "value_ints"):
                    kind = np.float32 if "float" in a.name else np.int64
                    value = np.asarray(onnx.helper.get_attribute_value(a), dtype=kind)
                    known[node.output[0]] = onnx.numpy_helper.from_array(value, node.output[0])
                    public.add(node.output[0])
    return known, public


def _fold(onnx: Any, proto: Any, done: Replacements) -> None:
    """Compute nodes whose inputs are all constants; public ones stay public, others stay weights."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - an optional dependency

    known, public = _tensors(onnx, proto)
    shown = {o.name for o in proto.graph.output}
    # what only turns weights around is the importer's business, and smaller as it is
    kept: list[Any] = []
    for k, node in enumerate(proto.graph.node):
        inputs = [i for i in node.input if i]
        simple = inputs and node.domain in ("", "ai.onnx") and node.op_type not in _DRAWN
        nested = any(a.HasField("g") or a.graphs for a in node.attribute)
        folds = simple and not nested and all(i in known for i in inputs) and not shown & set(node.output)
        values = _evaluate(onnx, ReferenceEvaluator, proto, node, known) if folds else None
        if values is None:
            kept.append(node)
            continue
        for name, array in values.items():
            tensor = onnx.numpy_helper.from_array(array, name)
            known[name] = tensor
            if all(i in public for i in inputs):
                public.add(name)
                kept.append(onnx.helper.make_node("Constant", [], [name], f"{name}_constant", value=tensor))
            else:
                proto.graph.initializer.append(tensor)
        done.append(Replacement(_name(node, k), node.op_type, "a constant, computed beforehand"))
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    _sweep(proto)


def _evaluate(onnx: Any, evaluator: Any, proto: Any, node: Any, known: dict[str, Any]) -> Any:
    """Results by name, or None where they cannot be had."""
    outputs = [o for o in node.output if o]
    inputs = sorted({i for i in node.input if i})
    try:
        arrays = {i: onnx.numpy_helper.to_array(known[i]) for i in inputs}
        infos = [onnx.helper.make_tensor_value_info(i, known[i].data_type, known[i].dims) for i in inputs]
        results = [onnx.helper.make_empty_tensor_value_info(o) for o in outputs]
        graph = onnx.helper.make_graph([node], "constant", infos, results)
        sets = {o.domain: o.version for o in proto.opset_import}
        if node.op_type == "DequantizeLinear":  # onnx computes it from there on, and it meant the same before
            sets[""] = max(sets[""], DEQUANTISED)
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in sets.items()]
        small = onnx.helper.make_model(graph, opset_imports=opsets)
        values = [np.asarray(v) for v in evaluator(small).run(None, arrays)]
    except Exception:  # the evaluator raises what NumPy raises
        return None
    if any(v.size > MAX_FOLDED or v.dtype.kind not in "fiub" for v in values):
        return None
    return dict(zip(outputs, values, strict=True))


def _skip(onnx: Any, proto: Any, done: Replacements) -> None:
    """Take out nodes that hand on what comes in."""
    known, _ = _tensors(onnx, proto)
    graph = proto.graph
    shown = {o.name for o in graph.output}
    given = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    kept: list[Any] = []
    renamed: dict[str, str] = {}
    for k, node in enumerate(graph.node):
        node.input[:] = [renamed.get(i, i) for i in node.input]
        if not _hands_on(onnx, node, known) or any(o for o in node.output[1:]):
            kept.append(node)
            continue
        source, result = node.input[0], node.output[0]
        if result in shown:
            # its source takes the output's name, if it has a node and no name that is shown
            maker = next((n for n in kept if source in n.output), None)
            if maker is None or source in shown or source in given or _nested_use(graph, source):
                kept.append(node)
                continue
            maker.output[:] = [result if o == source else o for o in maker.output]
            for other in kept:
                other.input[:] = [result if i == source else i for i in other.input]
            renamed = {a: result if b == source else b for a, b in renamed.items()} | {source: result}
        elif _nested_use(graph, result):
            kept.append(node)
            continue
        else:
            renamed[result] = source
        done.append(Replacement(_name(node, k), node.op_type, "taken out, it hands on what comes in"))
    del graph.node[:]
    graph.node.extend(kept)
    _sweep(proto)


def _hands_on(onnx: Any, node: Any, known: dict[str, Any]) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or not node.input[0]:
        return False
    if node.op_type != "Dropout":
        return bool(node.op_type == "Identity")
    if len(node.input) < 3 or not node.input[2]:
        return True
    training = known.get(node.input[2])
    return training is not None and not onnx.numpy_helper.to_array(training).any()


def _nested_use(graph: Any, name: str) -> bool:
    """Whether a branch of control flow reads a value."""

    def reads(inner: Any) -> bool:
        return any(name in n.input or any(reads(g) for g in _graphs(n)) for n in inner.node)

    return any(reads(g) for n in graph.node for g in _graphs(n))


def _graphs(node: Any) -> list[Any]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else []) + list(a.graphs)]


def _drop_final(proto: Any, done: Replacements) -> None:
    graph = proto.graph
    makers = {o: n for n in graph.node for o in n.output}
    uses = Counter(i for n in graph.node for i in n.input)
    shown = {o.name for o in graph.output}
    inputs = {i.name for i in graph.input}
    for k, node in enumerate(list(graph.node)):
        if node.op_type not in _FINAL or node.domain not in ("", "ai.onnx"):
            continue
        source, result = node.input[0], node.output[0]
        alone = uses[source] == 1 and source not in shown and source not in inputs and source in makers
        if result not in shown or uses[result] or not alone:
            continue
        maker = makers[source]
        maker.output[:] = [result if o == source else o for o in maker.output]
        graph.node.remove(node)
        done.append(Replacement(_name(node, k), node.op_type, f"left off: {result} shows raw scores"))


def _sweep(proto: Any) -> None:
    """Drop constants that nobody reads any more."""
    graph = proto.graph
    read = {o.name for o in graph.output}

    def collect(inner: Any) -> None:
        for n in inner.node:
            read.update(n.input)
            for g in _graphs(n):
                read.update(o.name for o in g.output)
                collect(g)

    collect(graph)
    unread = {t.name for t in graph.initializer} - read
    keep: list[tuple[Any, list[Any]]] = [
        (graph.initializer, [t for t in graph.initializer if t.name not in unread]),
        (graph.input, [i for i in graph.input if i.name not in unread]),  # old files list constants there
        (graph.node, [n for n in graph.node if n.op_type != "Constant" or n.output[0] in read]),
    ]
    for part, kept in keep:
        del part[:]
        part.extend(kept)


def _name(node: Any, k: int) -> str:
    shown = node.name or next((o for o in node.output if o), "") or f"{node.op_type}_{k}"
    return build_core.printable(shown)


# -- torch ------------------------------------------------------------------------------------------


def _fix_torch(module: Any, final: bool) -> tuple[Any, Replacements]:
    import torch  # noqa: PLC0415 - there is a module, so there is torch
    from torch.nn.modules import batchnorm  # noqa: PLC0415
    from torch.nn.utils import parametrize  # noqa: PLC0415

    nn = torch.nn

    class BatchNorm(batchnorm._BatchNorm):  # type: ignore[misc]
        def _check_input_dim(self, _: Any) -> None:
            return

    module = copy.deepcopy(module).eval()
    done = Replacements()

    # these very classes: a subclass may well drop in evaluation mode too
    dropouts = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

    def nothing(_: Any) -> Any:
        return nn.Identity().eval()

    def plain_norm(m: Any) -> Any:
        new = BatchNorm(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats)
        new.__dict__.update({k: v for k, v in m.__dict__.items() if k in ("_parameters", "_buffers")})
        return new.eval()

    rules: list[tuple[Any, Callable[[Any], Any], str]] = [
        *((kind, nothing, "Identity") for kind in dropouts),
        (nn.SyncBatchNorm, plain_norm, "BatchNorm"),
    ]
    for path, m in list(module.named_modules(remove_duplicate=False)):
        if parametrize.is_parametrized(m) and not isinstance(m, nn.RNNBase):
            kind = type(m).__name__
            for name in _plain_weights(torch, m):
                done.append(Replacement(path or "model", kind, f"plain {name}"))
        watched = m._forward_hooks or m._forward_pre_hooks
        for replaced, make, by in rules:
            if path and type(m) is replaced and not watched:
                _put(module, path, make(m))
                done.append(Replacement(path, type(m).__name__, by))
    if final:
        last = module
        path = ""
        while isinstance(last, nn.Sequential) and len(last):
            path = f"{path}.{len(last) - 1}" if path else str(len(last) - 1)
            last = last[-1]
        if path and isinstance(last, nn.Softmax | nn.LogSoftmax | nn.Sigmoid):
            _put(module, path, nn.Identity().eval())
            done.append(Replacement(path, type(last).__name__, "left off: the output shows raw scores"))
    return module, done


def _plain_weights(torch: Any, m: Any) -> list[str]:
    """Give a parametrised module its class back, and the weights it has now.

    Torch's own function takes them from the class, which the module that came in shares with its copy.
    """
    names = list(m.parametrizations)
    with torch.no_grad():
        weights = {name: getattr(m, name).detach().clone() for name in names}
    m.__class__ = type(m).__bases__[0]
    del m._modules["parametrizations"]
    for name, value in weights.items():
        m._parameters[name] = torch.nn.Parameter(value)
    return names


def _put(module: Any, path: str, new: Any) -> None:
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    owner._modules[name] = new
