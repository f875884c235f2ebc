"""What must not leave this machine with a shared page: local paths, and what looks like a credential.

Paths below known places (the runs' folder, home, the temporary folder, ...) are replaced wherever they stand, also in records. In what a
run notes about itself (settings, facts, failures, model names) every absolute path is cut to its last name, and values that look like
credentials, or are named like one, are left out. What a model answered is else kept as it is.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.records import QuestionRecord
from harness.report.data import PairRow, RunData

LEFT_OUT = "⟨left out⟩"
_NAMED = (
    r"(?:token(?![a-z]|_?id)|secret|passw(?:or)?d|passphrase|api[-_]?key|access[-_]?key|private[-_]?key|credential|authori[sz]ation|cookie)"
)
SECRET_NAME = re.compile(_NAMED, re.IGNORECASE)
_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|Bearer\s+[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
)
_ASSIGNED = re.compile(
    rf"(--[\w-]*{_NAMED}[\w-]*[\"',\s=]+|[\w-]*{_NAMED}[\w-]*[\"']?\s*[=:]\s*[\"']?)" + r"([^\s\"',\]}]{4,})", re.IGNORECASE
)
_PATH = re.compile(r"""file:/{2,3}[^\s"'<>]+|(?<![\w./:~…-])(?:~|[A-Za-z]:(?=[\\/]))?(?:[\\/][^\s\\/:;,"'<>|()\[\]{}]+)+[\\/]?""")
_TOO_COMMON = {tempfile.gettempdir(), "/var", "/usr", "/home", "/root", "/opt", "/mnt", "/data", "/srv"}
"""Replaced only as the beginning of a longer path, or a text about a root folder would lose its word."""


class Scrubber:
    """Takes local paths and credentials out of texts; `known` are places of this machine, `environment` the process's variables."""

    def __init__(self, known: Iterable[Path], environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        places = [*known, Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), *map(Path, _folders(variables))]
        names = {str(p) for place in places if str(place) for p in (place.absolute(), place.resolve())}
        self.places = sorted((n for n in names if len(n) > 1), key=len, reverse=True)
        self.secrets = sorted(
            {v for k, v in variables.items() if SECRET_NAME.search(k) and len(v) >= 8 and not v.isdecimal()}, key=len, reverse=True
        )
        literal = [*map(re.escape, self.secrets)]
        self._secret = re.compile("|".join([*literal, _SECRETS.pattern]))
        places_pattern = [re.escape(p) + (r"(?=[\\/])" if p in _TOO_COMMON else r"(?![\w.-])") for p in self.places]
        self._place = re.compile("|".join(places_pattern)) if places_pattern else re.compile(r"(?!)")

    def text(self, text: str) -> str:
        """Known places and credentials out of any text."""
        return self._place.sub("…", self._secret.sub(LEFT_OUT, text))

    def note(self, text: str) -> str:
        """Out of what a run notes about itself: also other absolute paths, and values named like credentials."""
        return _PATH.sub(_last_name, _ASSIGNED.sub(rf"\g<1>{LEFT_OUT}", self.text(text)))

    def run(self, run: RunData) -> RunData:
        """The run as it may be shared."""
        settings = [dataclasses.replace(s, value=LEFT_OUT) if SECRET_NAME.search(s.name) else s for s in run.settings]
        facts = [(k, LEFT_OUT if SECRET_NAME.search(k) else v) for k, v in run.facts]
        notes = {
            "settings": self._mapped(settings),
            "facts": self._mapped(facts),
            "stages": self._mapped(run.stages),
            "failures": self._mapped(run.failures),
            "timings": self._mapped(run.timings),
            "problems": self._mapped(run.problems),
        }
        return dataclasses.replace(run, **notes)  # type: ignore[arg-type]

    def left(self, text: str) -> str | None:
        """A known place or a known credential that is still in a text; None where there is none."""
        found = next((s for s in self.secrets if s in text), None)
        if found is not None:
            return "the value of an environment variable named like a credential"
        place = self._place.search(text)
        return place[0] if place else None

    def _mapped(self, value: Any) -> Any:
        """The same value with every text in it changed; records and pairs keep theirs but for known places and credentials."""
        if isinstance(value, str):
            return self.note(value)
        if isinstance(value, list | tuple):
            return type(value)([self._mapped(v) for v in value])
        if isinstance(value, dict):
            named = {k: isinstance(k, str) and bool(SECRET_NAME.search(k)) and bool(v) for k, v in value.items()}
            return {self._mapped(k): LEFT_OUT if named[k] else self._mapped(v) for k, v in value.items()}
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        old = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if isinstance(value, QuestionRecord | PairRow):
            new = {k: (self.note if k == "error" else self.text)(v) for k, v in old.items() if isinstance(v, str)}
        else:
            new = {k: self._mapped(v) for k, v in old.items()}
        different = {k: v for k, v in new.items() if v != old[k]}
        return dataclasses.replace(value, **different) if different else value


def _folders(variables: Mapping[str, str]) -> list[str]:
    """Folders that variables name and that a path in a record may begin with."""
    names = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "SAVI_CACHE", "TMPDIR", "GITHUB_WORKSPACE", "CI_PROJECT_DIR")
    return [v for n in names if (v := variables.get(n, "")) and Path(v).is_absolute()]


def _last_name(found: re.Match[str]) -> str:
    parts = [p for p in re.split(r"[\\/]", found[0]) if p]
    return f"…/{parts[-1]}" if len(parts) > 1 or found[0].startswith("~") else found[0]
