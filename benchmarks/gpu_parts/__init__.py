"""The parts of ``benchmarks/gpu.py``: what each measures on a device, and the report that it writes."""
