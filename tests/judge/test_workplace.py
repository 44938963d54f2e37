"""The folder of one run is gone when the run is, whenever that is interrupted."""

import inspect
import linecache
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tasks.judge import workplace


def interrupted_line(number: int, home: Path) -> str | None:
    """Uses a workplace; Ctrl-C comes at the nth line of it. That line, None if there is none."""
    lines: list[str] = []

    def interrupt(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not inspect.unwrap(workplace.workplace).__code__:
            return None
        if event == "line":
            lines.append(linecache.getline(workplace.__file__, frame.f_lineno).strip())
            if len(lines) == number:
                raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with workplace.workplace(home) as work:
            assert os.stat(work).st_mode & 0o777 == 0o755
    except KeyboardInterrupt:
        return lines[-1]
    finally:
        sys.settrace(before)
    return None


def test_ctrl_c_at_any_line_before_the_removal_leaves_no_folder_of_a_run(tmp_path):
    seen: list[str] = []
    while (line := interrupted_line(len(seen) + 1, tmp_path)) and line != "_remove(work)":
        assert list(tmp_path.glob("boxes/*")) == [], line
        seen.append(line)
    assert "yield work" in seen
