"""Sweeps: every cell of a grid of defenses, sequences, data sets, models and seeds, as one command.

:mod:`~advbench.sweep.grid` reads the file, :mod:`~advbench.sweep.plan` determines the remaining work,
:mod:`~advbench.sweep.local` does it in local processes and :mod:`~advbench.sweep.cluster` on a cluster.
"""
