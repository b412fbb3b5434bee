"""A copy of a model from before its first query, which a model with memory cannot influence."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from advbench.evaluation.shards import View
from advbench.evaluation.stochastic import logits_of
from attacks_pool import Attack

PATIENCE = 120.0
"""Seconds without an answer after which a process counts as hanging."""


class Fresh:
    """Copies of models in their present state, for queries after the originals have answered many queries.

    On Linux, for models on the CPU, this is a forked process, which later writes of the originals to
    attributes, globals or closures cannot reach. Elsewhere it is a deep copy, which shares globals and
    closures with the original; a module that cannot be copied is not queried. Close it, or use it in a
    ``with`` statement.

    Args:
        view: returns the module for an attack, or for clean images (``None``).
        attacks: the attacks whose modules may be queried, in addition to the module for clean images.
        device: the device of the modules.
    """

    def __init__(self, view: View, attacks: Sequence[Attack], device: torch.device) -> None:
        self._copies: dict[str | None, nn.Module] = {}
        self._process: Any = None
        self._pipe: Connection | None = None
        modules: dict[str | None, nn.Module] = {None: view(None)}
        modules |= {attack.text: view(attack) for attack in attacks}
        # The threads of a cluster client do not survive a fork.
        if sys.platform == "linux" and device.type == "cpu" and "grpc" not in sys.modules:
            with suppress(OSError, AssertionError):  # a daemon may have no children
                self._fork(modules)
        if self._pipe is None:
            memo: dict[int, Any] = {}
            with suppress(Exception):  # a foreign module may not be copyable
                self._copies = {name: copy.deepcopy(module, memo) for name, module in modules.items()}

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fork(self, modules: dict[str | None, nn.Module]) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_answer, args=(modules, theirs), daemon=True)
        with warnings.catch_warnings():
            # Python warns about locks of other threads; the process only computes, and is expendable.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        self._process, self._pipe = process, ours

    def logits(self, network: str | None, x: Tensor, seed: int) -> Tensor | None:
        """The logits (N, K) of a network for ``x`` (N, C, H, W), or None if there is no copy.

        Args:
            network: the text of an attack on the network; None means the network for clean images.
            x: images; the copy has seen only the images of earlier calls.
            seed: the seed of the global random state.
        """
        if self._pipe is not None:
            with suppress(EOFError, OSError):
                self._pipe.send((network, x.cpu().numpy(), seed))
                if self._pipe.poll(PATIENCE):
                    found = self._pipe.recv()
                    return None if found is None else torch.from_numpy(found).to(x.device)
            self.close()
            return None
        module = self._copies.get(network)
        return None if module is None else logits_of(module, x, seed)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _answer(modules: dict[str | None, nn.Module], pipe: Connection) -> None:
    """Answer queries in the forked process, with one thread; the answer is None if a model fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        while True:
            network, images, seed = pipe.recv()
            try:
                found = logits_of(modules[network], torch.from_numpy(images), seed).numpy()
            except Exception:
                found = None
            pipe.send(found)
    finally:
        # Exit without flushing: the parent's buffered output must not be written twice.
        os._exit(0)
