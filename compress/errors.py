"""What a user can get wrong."""

from __future__ import annotations


class UserError(Exception):
    """One sentence for the person at the terminal: what is wrong, where, and what to do about it.

    The command line prints it without a traceback and exits with a non-zero status.
    """


class DamagedSourceError(UserError):
    """The source cannot be compressed as it is: what was done over it is of no use to a run over a mended one."""
