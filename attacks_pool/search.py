"""The model that a search runs on: the same function, computed faster.

A search may look at reduced precision, with batch norm folded; its verdict may not. What it finds is
checked on the model as it is, by :func:`attacks_pool.engine.fooled` on the way and by the verifier at the
end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks_pool.verifier import predict_exactly


class SearchModel(nn.Module):
    """``fast`` to search on and ``exact`` to believe; both map images (N, C, H, W) to logits (N, K)."""

    def __init__(self, exact: nn.Module, fast: nn.Module) -> None:
        super().__init__()
        self.exact, self.fast = exact, fast

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the fast model, in float32."""
        logits: Tensor = self.fast(x)
        return logits.float()

    def exact_logits(self, x: Tensor) -> Tensor:
        """Logits of the model as it is, without gradients."""
        with torch.no_grad():
            return predict_exactly(self.exact, x)
