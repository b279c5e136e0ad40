"""Commands of each batch system, one module per system.

A *batch job* is *pending*, *running*, *done* (it ended in order) or *failed*. The modules translate the states, options
and messages of their systems into these terms.
"""
