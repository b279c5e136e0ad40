"""One Python call: to bytes and back, its execution, its interruption, its result.

A *call* is a function with its arguments. A *reference* replaces a future or a stored object in the pickle of a call,
and a *resolver* finds its value where the call runs. The *result of a rank* is the pickled value or exception of a call
on one rank; a *failure* describes an exception in text. An *interrupter* ends a call that exceeds its time limit or is
cancelled. The *state* of the process is restored after each call; *leftovers* are what only a new process can restore,
such as running threads. The *fingerprint* of a call is a hash of its code and arguments.

This room imports ``context``, ``format``, ``security`` and ``system``. It does not import ``protocol``: it receives and
returns bytes, and neither reads nor writes files of a spool. ``pickling`` imports ``wire`` by its name when it pickles.
"""
