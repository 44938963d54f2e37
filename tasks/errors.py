"""The errors that end a command, each named for who must act.

NightlyError            base; its text names the value, the limit and the remedy
  UsageError            the person at the keyboard must act: flag, profile, tag, checkout       exit 2
  DataError             the data must be mended: missing, corrupt or overlapping shards         exit 1
  BoxError              this machine cannot run the sandbox, or the sandbox broke               exit 1
  BaselineStopped       the unpatched train.py itself does not get through                      exit 3
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
