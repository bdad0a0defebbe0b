"""A slow disk: flushing and renaming take their time, so that a process can be killed in between."""

import os
import time

_fsync, _replace = os.fsync, os.replace


def _slow_fsync(descriptor):
    time.sleep(0.3)
    _fsync(descriptor)


def _slow_replace(source, destination, **kwargs):
    if str(destination).endswith(".pth"):
        time.sleep(0.3)
    _replace(source, destination, **kwargs)


os.fsync, os.replace = _slow_fsync, _slow_replace
