"""What a spool asks of a filesystem's metadata server, beyond what one machine can show; see ``scripts/simulate``.

::

    servers     what published metadata servers do
    model       operations per second by their causes, and where a server is full: closed forms
    simulation  the same by discrete events, where waiting, chance and jitter have their part

Both count operations as :mod:`benchmarks.costs` has them.
"""
