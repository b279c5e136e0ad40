"""Protection of the users of a spool against others; ``docs/security.md`` lists the attacks.

A pickle is a program, so a file is unpickled only if its owner is in the *trust* of the reader. In a *signed* spool the
file also needs a *signature* by a *key* that only trusted accounts can read; a signature covers the *label* of its
file. The *mode* of a spool determines the *rights*, the permission bits, of everything in it. *Directory handles* keep
directories open, so that no other account can replace them.

This room imports ``system``, ``errors`` and ``settings``. It imports neither ``format`` nor the rooms above: it judges
owners, permissions and bytes, and does not read the content of files.
"""
