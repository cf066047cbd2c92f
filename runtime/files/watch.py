"""Watch folders for new images: by looking at them again and again.

Not inotify: it says nothing of network drives, loses events when its queue is full, and whether a file has settled has
to be looked at anyway. A look costs one `stat` a file; how often is chosen so that looking takes a tenth of a core,
and files wait a little longer where there are very many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from aivsreal.runtime.files.find import Search
from aivsreal.runtime.pixels.read import stamp_of
from aivsreal.runtime.verdict import FileStamp

LOOK_EVERY_S = 1.0
SETTLED_AFTER_S = 2.0  # a writer that pauses for longer costs an error row, and a second one when it is done


class Watcher:
    """Files that have appeared or changed under some folders and are not being written to any more.

    Args:
        folders: searched with their subfolders. One that is not there, or not there any more, is waited for.
        settled_after_s: how long a file must have kept its size and time.
        clock: seconds that never go back.
        search: how folders are searched.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        settled_after_s: float = SETTLED_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
        search: Search | None = None,
    ) -> None:
        self._search = search or Search()
        self._folders = tuple(folders)
        self._settled_after_s = settled_after_s
        self._clock = clock
        self._since: dict[Path, tuple[FileStamp, float]] = {}  # when each file was first seen in its state
        self._told: set[Path] = set()
        self.pause_s = LOOK_EVERY_S
        """How long to wait before the next look."""

    def settled(self) -> list[Path]:
        """Look once: each file that has settled since the last look, in the order of the walk."""
        begin_s = time.thread_time()
        now_s = self._clock()
        since, told, ready = self._since, self._told, list[Path]()
        self._since, self._told = {}, set()  # only what is still there is kept, so that rotation costs no memory
        for folder in self._folders:
            for path in self._search.paths(folder):
                stamp = stamp_of(path)
                if stamp is None or path == folder or path in self._since:
                    continue  # gone again, a link to nowhere, a folder that cannot be listed now, or seen in another
                before = since.get(path)
                first_s = before[1] if before is not None and before[0] == stamp else now_s
                self._since[path] = (stamp, first_s)
                if before is not None and before[0] == stamp and path in told:
                    self._told.add(path)
                elif now_s - first_s >= self._settled_after_s:
                    self._told.add(path)
                    ready.append(path)
        # One look at 100,000 files took 2.0 s of a core where this was written: then it is made every 20 s. There is no
        # longest pause: with one of 60 s, a million files took a quarter of a core.
        self.pause_s = max(LOOK_EVERY_S, 9 * (time.thread_time() - begin_s))
        return ready
