"""A copy of a model from before it was asked anything, which a model that remembers cannot influence."""

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
"""Seconds after which a process that does not answer counts as hanging."""


class Fresh:
    """Models as they are now, to be asked later, when the originals have answered many questions.

    On Linux, for models on the CPU, it is a forked process: whatever the originals write into attributes,
    globals or closures afterwards stays out of it. Elsewhere it is a deep copy, which shares globals and
    closures with the original; a module that cannot be copied is not asked at all. Close it, or use it in a
    ``with`` statement.

    Args:
        view: gives the module for an attack, ``None`` for clean images.
        attacks: the attacks whose modules may be asked for, beside that of clean images.
        device: where the modules are.
    """

    def __init__(self, view: View, attacks: Sequence[Attack], device: torch.device) -> None:
        self._copies: dict[str | None, nn.Module] = {}
        self._process: Any = None
        self._pipe: Connection | None = None
        modules: dict[str | None, nn.Module] = {None: view(None)}
        modules |= {attack.text: view(attack) for attack in attacks}
        # The threads of a cluster's client do not survive a fork.
        if sys.platform == "linux" and device.type == "cpu" and "grpc" not in sys.modules:
            with suppress(OSError, AssertionError):  # a daemon may have no children
                self._fork(modules)
        if self._pipe is None:
            memo: dict[int, Any] = {}
            with suppress(Exception):  # a stranger's module may refuse to be copied
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
            # Python warns of locks that other threads hold; the process only computes, and may be given up.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        self._process, self._pipe = process, ours

    def logits(self, network: str | None, x: Tensor, seed: int) -> Tensor | None:
        """Logits (N, K) of a network for ``x`` (N, C, H, W), or None where there is no copy to ask.

        Args:
            network: the text of an attack that meets the network; None is that of clean images.
            x: images; the copy sees them after everything that it was asked before, and nothing else.
            seed: of the global random state.
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
    """The process: one thread, since a fork has none of its parent's, and None where a model fails."""
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
        # What the parent had buffered for its own output must not be written twice.
        os._exit(0)
