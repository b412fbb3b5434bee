"""Reads a network's steps from its trace."""

from __future__ import annotations

import inspect
import operator
import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from advbench.evaluation.certificates.affine_steps import NonNegative
from advbench.evaluation.certificates.builders import Builders
from advbench.evaluation.certificates.module_table import MODULES
from advbench.evaluation.certificates.network_steps import SAMPLES, Piped, StepList, UncoveredError, refuse
from advbench.models.normalize import Normalize
from advbench.runtime.factory import one_line
from attacks_pool.calling.guard import evaluation_mode, ordinary_mode
from attacks_pool.calling.randomness import isolated_randomness

ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.getitem}
"""Functions that are computed at once if all their arguments are constants, such as sizes."""


LIBRARIES = ("torch", "_operator", "math")
"""The modules of functions that are known by their names."""
SIZES = {"size", "dim", "ndimension"}
"""Methods that return sizes."""
CASTS = {"float", "double", "to", "type"}
"""Methods that may leave the values as they are."""
FLOATS = (torch.float32, torch.float64)


@ordinary_mode()
def read_network(model: nn.Module, image_shape: tuple[int, ...], device: torch.device) -> StepList:
    """The steps of a model from images (N, C, H, W) to logits (N, K), with float64 weights.

    Args:
        model: the model; it is read in eval mode.
        image_shape: (C, H, W).
        device: the device of the model.

    Raises:
        InputError: an operation of it has no bounds; the message names the operation.
    """
    with torch.no_grad(), evaluation_mode(model):
        _check_modules(model)
        generator = torch.Generator().manual_seed(0)
        shape = (SAMPLES, *image_shape)
        sample = torch.rand(shape, generator=generator, dtype=torch.float64).to(device)
        with isolated_randomness(0, device):
            before = _random_states()
            # Constants are computed while the model is traced, or else, if they need sizes, while it is read.
            network = _Reader(model, _traced(model), sample).network
            if before != _random_states():
                raise refuse("a model that draws random numbers")
        return network


class _Tracer(fx.Tracer):
    """Takes our normalisation as one operation, since its checks need values."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) is Normalize or super().is_leaf_module(module, name)


def _traced(model: nn.Module) -> fx.Graph:
    parameters = list(inspect.signature(model.forward).parameters.values())
    given = {one.name: one.default for one in parameters[1:] if one.default is not inspect.Parameter.empty}
    try:
        graph = _Tracer().trace(model, concrete_args=given or None)
    except Exception as error:  # any code of a third-party model may fail on a symbolic input
        raise refuse(f"a model that cannot be traced ({one_line(error)})") from error
    return graph


def _random_states() -> tuple[object, ...]:
    """The states of the global random generators, which a model without noise leaves alone."""
    return torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())


def _check_modules(model: nn.Module) -> None:
    """Refuse what a trace does not show."""
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        known = ("WeightNorm", "SpectralNorm")
        if any(type(hook).__name__ not in known for held in hooks for hook in held.values()):
            raise refuse(f"the forward hook of {name or 'the model'}")
        if "forward" in vars(module):
            raise refuse(f"the replaced forward of {name or 'the model'}")


class _Reader:
    """Walks the trace and appends the step of each node."""

    def __init__(self, model: nn.Module, graph: fx.Graph, sample: Tensor) -> None:
        self.model = model
        self.network, images = StepList.of_images(sample)
        self.builders = Builders(self.network)
        self.found: dict[fx.Node, Any] = {}
        self.memory: dict[fx.Node, fx.Node] = {}
        """The first node whose memory a node may share."""
        self.stale: set[fx.Node] = set()
        """Nodes whose values were changed in place."""
        for node in graph.nodes:
            if node.op == "placeholder" and not self.found:
                self.found[node], self.memory[node] = images, node
            elif node.op == "output":
                self._finish(self._value(node.args[0]))
            elif node.op != "placeholder":
                self.found[node] = self._result(node)
                self._remember(node)

    def _finish(self, output: Any) -> None:
        if isinstance(output, dict):
            output = output.get("logits")
        if not isinstance(output, Piped) or len(output.shape) != 1:
            raise refuse("a model whose output is not logits (N, K)")
        # Bounds start from the last step; steps behind the logits do not belong to them.
        for part in (self.network.steps, self.network.linear, self.network.boxed, self.network.exact):
            del part[output.index + 1 :]

    def _value(self, given: Any) -> Any:
        """An argument of the trace, with results in place of nodes."""
        return fx.node.map_arg(given, self._read)

    def _read(self, node: fx.Node) -> Any:
        if node in self.stale:
            raise refuse(f"{node.name}, which is used again after it was changed in place")
        return self.found[node]

    def _result(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            found: Any = self.model
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found
        args, kwargs = self._value(node.args), self._value(node.kwargs)
        name = str(node.target)
        try:
            if node.op == "call_module":
                module = self.model.get_submodule(name)
                name = f"{type(module).__name__} ({name})"
                return self._module(module, args)
            if node.op == "call_method":
                return self._method(name, args, kwargs)
            name = getattr(node.target, "__name__", name)
            return self._function(node.target, name, args, kwargs)
        except UncoveredError as error:
            raise refuse(f"{name}: {error}" if str(error) else name) from None
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise refuse(f"{name} with these arguments ({one_line(error)})") from error

    def _function(self, target: Any, name: str, args: Any, kwargs: Any) -> Any:
        if target is getattr:
            if isinstance(args[0], Piped):
                if args[1] == "shape":
                    return args[0].sample.shape
                raise UncoveredError(f"the attribute {args[1]}")
            return getattr(*args)
        # A function of another package may have the name of one of torch's.
        known = target is None or target in ARITHMETIC or _home(target).startswith(LIBRARIES)
        if not known:
            raise UncoveredError
        if not any(isinstance(one, Piped) for one in _leaves([args, kwargs])):
            return target(*args, **kwargs)
        builder = self.builders.known(_plain(name))
        if builder is None:
            raise UncoveredError
        kwargs = {("x" if key == "input" else key): value for key, value in kwargs.items()}
        return builder(*args, **kwargs)

    def _method(self, name: str, args: Any, kwargs: Any) -> Any:
        x, *more = args
        if not isinstance(x, Piped):
            if isinstance(x, Tensor) and not any(isinstance(one, Piped) for one in _leaves([more, kwargs])):
                return getattr(x, name)(*more, **kwargs)
            if isinstance(x, Tensor) and self.builders.known(_plain(name)) is not None:
                return self._function(None, name, args, kwargs)
            raise UncoveredError
        if name in SIZES:
            return getattr(x.sample, name)(*more, **kwargs)
        if name in CASTS:
            kinds = [one for one in (*more, *kwargs.values()) if isinstance(one, torch.dtype)]
            rest = [one for one in (*more, *kwargs.values()) if isinstance(one, str | Tensor)]
            if rest or any(kind not in FLOATS for kind in kinds):
                raise UncoveredError
            return x
        return self._function(None, name, args, kwargs)

    def _module(self, module: nn.Module, args: Any) -> Any:
        if type(module) not in MODULES:
            raise UncoveredError
        if not all(isinstance(one, Piped) for one in args):
            raise UncoveredError("an input that is no tensor")
        return MODULES[type(module)](self.builders, module, *args)

    def _remember(self, node: fx.Node) -> None:
        """Keep track of memory that results share, and of values that an operation in place has replaced."""
        result = self.found[node]
        if not isinstance(result, Piped):
            return
        sources = [one for one in node.all_input_nodes if isinstance(self.found[one], Piped)]
        first = sources[0] if sources else node
        step = self.network.steps[result.index]
        view = isinstance(step, NonNegative) and step.keeps_boxes
        same = bool(sources) and (result.index == self.found[first].index or view)
        in_place = bool(sources) and self._in_place(node)
        self.memory[node] = self.memory[first] if same or in_place else node
        if in_place:
            shared = {one for one, memory in self.memory.items() if memory is self.memory[first]}
            self.stale |= shared - {node}

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.model.get_submodule(str(node.target)), "inplace", False))
        if node.kwargs.get("inplace"):
            return True
        name = getattr(node.target, "__name__", str(node.target))
        return name != _plain(name) or _in_place_argument(node)


def _home(target: Any) -> str:
    """The module of a function; methods of torch's C++ library have none."""
    return str(getattr(target, "__module__", None) or "torch")


def _in_place_argument(node: fx.Node) -> bool:
    """Whether a function of torch.nn.functional got ``inplace`` by position."""
    if node.op != "call_function":
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return bool(bound.arguments.get("inplace"))


def _plain(name: str) -> str:
    """The name of an operation without the marks of one that works in place."""
    name = name.removesuffix("_")
    return name[1:] if name in ("iadd", "isub", "imul", "itruediv") else name


def _leaves(given: Any) -> list[Any]:
    found: list[Any] = []
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, tuple | list):
        for one in given:
            found += _leaves(one)
        return found
    return [given]
