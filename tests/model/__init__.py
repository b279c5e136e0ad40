"""Model of the protocol, and a model checker that tries every interleaving of its participants.

operations.py    files, file operations and rules: the language of the model
config.py        size of a case, and the faults that it allows
protocol.py      the rules of the participants, section by section of docs/protocol.md
invariants.py    conditions that every step and every state must meet
transitions.py   the steps that are possible in a state: rules, faults, and requests of users
objects.py       a second, small model, in the same language: the rules of objects and their leases
reduction.py     the same states and steps up to symmetry, as integers
checker.py       the search through all states

All but the last two describe the protocol, and change with it.
"""
