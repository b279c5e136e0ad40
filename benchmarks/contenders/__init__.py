"""Who is measured. ``python -m benchmarks.contenders.NAME JOB`` does one job and writes down its figures.

A module here is imported by the harness, which has none of the libraries, and run by a Python that has its
own: so a library is imported inside functions, and nothing but the standard library on top. A library that only
queues becomes a pool in :mod:`.queues`.
"""
