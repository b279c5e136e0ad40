"""Load of a spool on the metadata server of a filesystem, beyond the size of one machine; see ``scripts/simulate``.

::

    servers     published figures of metadata servers
    model       operations per second by their causes, and the limit of a server: closed forms
    simulation  the same by discrete events, with waiting, chance and jitter

Both count operations as :mod:`benchmarks.costs` has them.
"""
