"""How quick spoolpool is, measured beside its neighbours in one run on one machine; see ``scripts/bench --help``.

::

    rows        what is measured, of whom, and what it is compared with
    contenders  who is measured: each module runs in a process of its own, in the environment of its library
    harness     rounds in which everybody has a turn, so that whatever disturbs the machine disturbs all
    results     medians, spreads and ratios; JSON           table   the same for people
    page        the same as a page of the documentation     plot    which has a plot for each row
"""
