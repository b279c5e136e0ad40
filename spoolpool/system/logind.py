"""Removal of files in memory by systemd-logind, when the last login session of an account ends."""

from __future__ import annotations

import glob
import os
import re

from spoolpool.system.accounts import account_name

_ROOT = "/"
_CONFIGURATION = (
    "etc/systemd/logind.conf",
    *(f"{top}/systemd/logind.conf.d/*.conf" for top in ("usr/lib", "run", "etc")),
)
_SYSTEM_ACCOUNTS = 999  # the greatest number of an account whose files stay, as most distributions compile it
_REMOVE = re.compile(r"^(#?)\s*RemoveIPC\s*=\s*(\w+)", re.MULTILINE)
_FALSE = ("no", "n", "false", "f", "off", "0")


def removes_files(uid: int, root: str = _ROOT) -> bool:
    """Return whether files of an account in ``/dev/shm`` and in its runtime directory may go at its logout.

    That is so for each regular account that does not linger, unless the configuration says ``RemoveIPC=no``. A comment
    in the main file shows the default that the distribution has compiled. See logind.conf(5).
    """
    if uid <= _SYSTEM_ACCOUNTS or not os.path.isdir(os.path.join(root, "run/systemd/system")):
        return False
    if os.path.exists(os.path.join(root, "var/lib/systemd/linger", account_name(uid))):
        return False
    value = "yes"
    for pattern in _CONFIGURATION:
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read(1 << 16)
            except OSError:
                continue
            found = _REMOVE.findall(text)
            chosen = [word for comment, word in found if not comment] or [word for _, word in found]
            value = chosen[-1] if chosen else value
    return value.lower() not in _FALSE
