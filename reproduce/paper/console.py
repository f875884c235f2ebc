"""What a run says while it works: bars with the time left on a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reproduce.stages import Stage

PLAIN_EVERY_S = 15.0
PLAIN_WIDTH = 120
"""A pipe or a log has no width of its own; the table of six benchmarks needs this much."""


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


class Ticker:
    """Progress of one stage: moves the bar, or prints a line when enough time has passed."""

    def __init__(self, console: RunConsole, title: str, task: TaskID | None) -> None:
        self._console, self._title, self._task = console, title, task
        self._started = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int, /) -> None:
        now = time.monotonic()
        if self._task is not None:
            self._console.bars.update(self._task, completed=done, total=total)
            return
        if self._first is None or done < self._first[0]:
            self._first = (done, now)
        if now - self._last < PLAIN_EVERY_S or done >= total:
            return
        self._last = now
        before, since = self._first
        left = f", about {duration((now - since) / (done - before) * (total - done))} left" if done > before else ""
        self._console.say(f"    {self._title}: {done} of {total}{left}")


class RunConsole:
    """Implements `reproduce.stages.Console` with rich. Use as a context manager: the bars live inside."""

    def __init__(self, console: RichConsole | None = None) -> None:
        self.rich = console or RichConsole(highlight=False)
        if console is None and not self.rich.is_terminal:
            self.rich = RichConsole(highlight=False, width=PLAIN_WIDTH)
        self.bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.rich,
            transient=True,
            disable=not self.rich.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> RunConsole:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """A line at once: a pipe is flushed too, since a person may be watching a log."""
        self.rich.print(escape(text), soft_wrap=True)
        self.rich.file.flush()

    def begin(self, stage: Stage, number: int, of: int) -> Ticker:
        title = f"[{number}/{of}] {stage.name}"
        if self.rich.is_terminal:
            self._task = self.bars.add_task(escape(f"{title}: {stage.title}"), total=None)
        else:
            self.say(f"{title}: {stage.title} ...")
        return Ticker(self, stage.name, self._task)

    def _remove_bar(self) -> None:
        if self._task is not None:
            self.bars.remove_task(self._task)
            self._task = None

    def end(self, stage: Stage, summary: str, seconds: float) -> None:
        self._remove_bar()
        self.say(f"  done  {stage.name}: {summary} ({duration(seconds)})")

    def skip(self, stage: Stage, summary: str) -> None:
        self.say(f"  there {stage.name}: {summary}")

    def remark(self, text: str) -> None:
        self.say(f"  note  {text}")
