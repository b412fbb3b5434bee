"""Full float32 precision for checks in searches. The verifier has its own code, so no fault is shared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_alone(device: torch.device) -> Iterator[None]:
    """Turn TF32 and autocast off inside; restore every setting afterwards."""
    backends: Any = torch.backends
    modern = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    precisions = [setting.fp32_precision for setting in modern]
    flags = {}
    for backend in (backends.cuda.matmul, backends.cudnn):
        # torch refuses to read the older flag while it disagrees with the newer settings.
        with contextlib.suppress(RuntimeError):
            flags[backend] = bool(backend.allow_tf32)
    try:
        for backend in (backends.cuda.matmul, backends.cudnn):
            backend.allow_tf32 = False
        for setting in modern:
            setting.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in flags.items():
            backend.allow_tf32 = allowed
        for setting, precision in zip(modern, precisions, strict=True):
            setting.fp32_precision = precision
