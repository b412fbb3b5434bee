"""Batch normalisation that keeps the tasks of a mixed batch separate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from defenses.parts.lowrank.layer import Mix
from defenses.parts.lowrank.routing import Route, Routing


class TaskBatchNorm(_BatchNorm):
    """Batch norm with statistics for each task; γ and β belong to the backbone and are shared.

    In train mode, the samples of a task are normalised by their own batch statistics, independently of
    other tasks, and update only that task's running statistics. A task with a single value per channel in the
    batch has no variance: it uses its running statistics, which do not change.
    In eval mode, a sample is normalised by its task's running statistics, or by those of every task, with
    the results summed by router weights. Both are affine maps, so they merge exactly. Router weights use
    running statistics in train mode too, because they do not assign samples to tasks.

    Args:
        norm: the layer whose parameters, statistics and settings are used.
        routing: holds the current batch's route; without a task this layer equals ``norm``.
    """

    task_mean: Tensor
    task_var: Tensor
    task_batches: Tensor

    def __init__(self, norm: _BatchNorm, routing: Routing) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.kind, self.routing, self.training = type(norm), routing, norm.training
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.remove_tasks()

    def add_task(self, source: int | None = None) -> None:
        """Add statistics for one more task, copied from task ``source`` (None: from the layer itself)."""
        if self.running_mean is None or self.running_var is None:
            return
        mean = self.running_mean if source is None else self.task_mean[source]
        var = self.running_var if source is None else self.task_var[source]
        self.task_mean = torch.cat([self.task_mean, mean[None]])
        self.task_var = torch.cat([self.task_var, var[None]])
        self.task_batches = torch.cat([self.task_batches, self.task_batches.new_zeros(1)])

    def remove_tasks(self) -> None:
        """Remove the statistics of all tasks."""
        mean = self.running_mean
        like = torch.empty(0) if mean is None else mean
        tasks = like.new_empty(0, self.num_features)
        self.register_buffer("task_mean", tasks)
        self.register_buffer("task_var", tasks.clone())
        self.register_buffer("task_batches", torch.zeros(0, dtype=torch.int64, device=like.device))

    def restart(self) -> None:
        """Reset every task's running statistics to those of the layer itself."""
        if self.running_mean is not None and self.running_var is not None:
            self.task_mean.copy_(self.running_mean)
            self.task_var.copy_(self.running_var)
            self.task_batches.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """The normalised features, with the shape of ``input`` (N, C, …)."""
        route = self.routing.route
        if route.task is not None:
            return self._of_task(input, route.task)
        if route.weights is None:
            return super().forward(input)
        if route.counts is not None and (self.training or not self.track_running_stats):
            return self._by_task(input, route)
        if not self.track_running_stats:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        scale, shift = self._affine(route.weights.to(self.task_mean))
        shape = (len(input), self.num_features, *[1] * (input.dim() - 2))
        return input * scale.view(shape) + shift.view(shape)

    def plain(self, mix: Mix) -> _BatchNorm:
        """An equivalent layer of the original class for a whole batch with mix ``mix``, in eval mode."""
        norm: _BatchNorm = self.kind(
            self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats
        ).to(self.task_mean)
        if self.affine:
            norm.weight = nn.Parameter(self.weight.detach().clone())
            norm.bias = nn.Parameter(self.bias.detach().clone())
        if self.running_mean is not None and self.running_var is not None:
            mean, var = self._merged(mix)
            norm.running_mean, norm.running_var = mean.clone(), var.clone()
            assert self.num_batches_tracked is not None
            batches = self.task_batches[mix] if isinstance(mix, int) else self.num_batches_tracked
            norm.num_batches_tracked = batches.clone()
        return norm.train(self.training)

    def _merged(self, mix: Mix) -> tuple[Tensor, Tensor]:
        """Mean and variance of a single layer with the same effect."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if mix is None:
            return self.running_mean, self.running_var
        if isinstance(mix, int):
            return self.task_mean[mix], self.task_var[mix]
        # Σ w_e (x − μ_e)/σ_e = (x − μ)/σ with 1/σ = Σ w_e/σ_e and μ = σ·Σ w_e μ_e/σ_e.
        inverse = (self.task_var + self.eps).rsqrt()
        weights = mix.to(inverse)
        deviation = 1 / (weights @ inverse)
        return deviation * (weights @ (self.task_mean * inverse)), deviation.square() - self.eps

    def _affine(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift (N, C) of each sample, from Σ_e w_e·(γ (x − μ_e)/σ_e + β)."""
        inverse = (self.task_var + self.eps).rsqrt()
        scale, shift = weights @ inverse, -weights @ (self.task_mean * inverse)
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return scale, shift

    def _by_task(self, x: Tensor, route: Route) -> Tensor:
        assert route.counts is not None
        parts = torch.split(x if route.order is None else x[route.order], list(route.counts))
        done = torch.cat([self._of_task(part, task) for task, part in enumerate(parts) if len(part)])
        return done if route.order is None else done[torch.argsort(route.order)]

    def _of_task(self, x: Tensor, task: int) -> Tensor:
        if not self.track_running_stats:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        mean, var = self.task_mean[task], self.task_var[task]
        if not self.training or x.numel() == self.num_features:
            # Copies, because other tasks of this batch change their rows before the backward pass.
            kept = (mean.clone(), var.clone()) if self.training else (mean, var)
            return F.batch_norm(x, *kept, self.weight, self.bias, False, 0.0, self.eps)
        self.task_batches[task] += 1
        momentum = 1 / int(self.task_batches[task]) if self.momentum is None else self.momentum
        return F.batch_norm(x, mean, var, self.weight, self.bias, True, momentum, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions, since the original layer was built for its network."""
