"""The process around a run: devices, events, interrupts, time limits, failures, hashes."""
