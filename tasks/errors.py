"""The errors that end a command, each named for who must act.

NightlyError         base; its text names the value, the limit and the remedy
  UsageError         exit 2  the user must act: a flag, the profile, the tag, the checkout
  DataError          exit 1  the data must be fixed: missing, corrupt or overlapping shards
  BoxError           exit 1  this machine cannot run the sandbox, or the sandbox broke
  BaselineStopped    exit 3  the unpatched train.py itself was stopped
"""

from __future__ import annotations


class NightlyError(Exception):
    """Base of every error that the command line prints as one plain message."""

    exit_code = 1


class UsageError(NightlyError):
    exit_code = 2


class DataError(NightlyError):
    pass


class BoxError(NightlyError):
    pass


class BaselineStopped(NightlyError):
    exit_code = 3
