"""Modules that another ``forward`` stands in for while a model is exported.

Torch's own multi-head attention moves the batch from axis 0 and folds it into the heads, which hides that
samples stay apart; a module for which the user brings a function of one variable becomes one operator.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError
from privinfer.graph import functions as known

Array = npt.NDArray[np.float64]
Functions = Mapping[str, tuple[Callable[[Array], Array], float, float]]

SAMPLES = 1025


@contextlib.contextmanager
def standing_in(torch: Any, module: Any, functions: Mapping[str, str]) -> Iterator[None]:
    """Replace ``forward`` of some modules of `module` for a while.

    Parameters
    ----------
    torch : module
        The library.
    module : Module
        What is exported.
    functions : mapping of str
        Names of registered functions by the paths of the modules they replace.
    """
    attention = torch.nn.MultiheadAttention.forward
    with contextlib.ExitStack() as stack:
        own = {id(module.get_submodule(path)) for path in functions}
        for m in module.modules():
            if type(m).forward is attention and "forward" not in m.__dict__ and id(m) not in own:
                stack.enter_context(_replaced(m, _attention(torch, m)))
        for path, name in functions.items():
            call = _function(torch)
            stack.enter_context(_replaced(module.get_submodule(path), lambda x, n=name, c=call: c(x, n)))
        yield


@contextlib.contextmanager
def _replaced(m: Any, forward: Callable[..., Any]) -> Iterator[None]:
    before = m.__dict__.get("forward")
    m.__dict__["forward"] = forward
    try:
        yield
    finally:
        del m.__dict__["forward"]
        if before is not None:
            m.__dict__["forward"] = before


def register(module: Any, functions: Functions) -> dict[str, str]:
    """Make a user's functions known; their names hold what tells two functions of one path apart.

    Raises
    ------
    ConfigError
        A path, a range or a function that does not do.
    """
    names = {}
    for path, entry in functions.items():
        try:
            module.get_submodule(path)
            fn, low, high = entry
            low, high = float(low), float(high)
        except AttributeError:
            raise ConfigError(f"functions: there is no module {path!r}") from None
        except (TypeError, ValueError):
            raise ConfigError(f"functions[{path!r}] has to be (callable, low, high)") from None
        if not callable(fn) or not (np.isfinite([low, high]).all() and low < high):
            raise ConfigError(f"functions[{path!r}] has to be a callable and a finite range")
        x = np.linspace(low, high, SAMPLES).reshape(5, -1)
        try:
            y = np.asarray(fn(x), dtype=np.float64)
        except Exception as e:  # whatever a user's callable raises
            raise ConfigError(f"functions[{path!r}] raises {type(e).__name__} on its range") from e
        if y.shape != x.shape or not np.isfinite(y).all():
            raise ConfigError(f"functions[{path!r}] has to give finite values of its argument's shape")
        digest = hashlib.sha256(np.array([low, high]).tobytes() + y.tobytes()).hexdigest()[:8]
        names[path] = f"{path or 'function'}:{digest}"
        known.register(names[path], fn, domain=(low, high))
    return names


def _function(torch: Any) -> Any:
    """The operator that stands for a user's function: it takes a tensor and the function's name."""
    if not hasattr(torch.ops.privinfer, "function"):
        schema = "(Tensor x, str name) -> Tensor"
        made = torch.library.custom_op(
            "privinfer::function", lambda x, name: x.clone(), mutates_args=(), schema=schema
        )
        made.register_fake(lambda x, name: torch.empty_like(x))
    return torch.ops.privinfer.function


def _attention(torch: Any, m: Any) -> Callable[..., Any]:
    """``MultiheadAttention.forward``, batch first all the way."""
    functional = torch.nn.functional

    def projections(query: Any, key: Any, value: Any) -> Any:
        bias = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
        if m._qkv_same_embed_dim:
            if query is key is value:
                return functional.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
            weights = m.in_proj_weight.chunk(3)
        else:
            weights = m.q_proj_weight, m.k_proj_weight, m.v_proj_weight
        return [functional.linear(*v) for v in zip((query, key, value), weights, bias, strict=True)]

    def forward(
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        if query.dim() != 3:
            raise ValueError("attention without a batch axis")
        if key_padding_mask is not None or m.bias_k is not None or m.add_zero_attn:
            raise ValueError("attention with a key padding mask, or with a bias of its keys")
        if not m.batch_first:
            same = query is key is value
            query = query.transpose(0, 1)
            key, value = (query, query) if same else (key.transpose(0, 1), value.transpose(0, 1))
        parts = projections(query, key, value)
        batch, heads, size = query.shape[0], m.num_heads, m.head_dim
        q, k, v = (p.reshape(batch, p.shape[1], heads, size).transpose(1, 2) for p in parts)
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.reshape(batch, heads, *attn_mask.shape[1:])
            if attn_mask.dtype == torch.bool:  # here it says what may not be seen
                attn_mask = ~attn_mask
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask)
        y = y.transpose(1, 2).reshape(batch, query.shape[1], heads * size)
        y = functional.linear(y, m.out_proj.weight, m.out_proj.bias)
        weights = None
        if need_weights:
            scores = (q * size**-0.5) @ k.transpose(-1, -2)
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -torch.inf)
            elif attn_mask is not None:
                scores = scores + attn_mask
            weights = scores.softmax(-1)
            weights = weights.mean(1) if average_attn_weights else weights
        return (y if m.batch_first else y.transpose(0, 1)), weights

    return forward
