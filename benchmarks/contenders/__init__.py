"""Measured programs. ``python -m benchmarks.contenders.NAME JOB`` does one job and writes its figures to a file.

A module here is imported by the harness, which has none of the libraries, and run by a Python that has its
own: so libraries are imported inside functions, and only the standard library at the top. A library that is only a
queue becomes a pool in :mod:`.queues`.
"""
