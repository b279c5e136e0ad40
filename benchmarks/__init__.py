"""Speed of spoolpool and of its peers, measured in one run on one machine; see ``scripts/bench --help``.

::

    rows        measurements: contenders, quantities and comparisons
    contenders  measured programs: each module runs in its own process, in the environment of its library
    harness     rounds in which each contender has a turn, so that a disturbance of the machine affects all
    results     medians, spreads and ratios; JSON           table   the same as text
    page        the same as a page of the documentation     plot    its plots, one per row
"""
