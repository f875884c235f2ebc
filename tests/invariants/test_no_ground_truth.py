"""No ground truth enters the loop: proposing pairs opens nothing but the model, the videos and its own output, and never imports
`benchmarks`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.world.videos import build_videos

_LOOP = """
import json, sys
from pathlib import Path
videos, out, base = map(Path, sys.argv[1:4])

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("benchmarks", "harness", "reproduce"):
            raise ImportError(f"the loop must not import {name}")
sys.meta_path.insert(0, Blocked())

from savi.loop.propose import AlignSettings, propose
from savi.engine.video_lm import GenerationSettings, VideoLM
lm = VideoLM.from_pretrained(base)
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and isinstance(args[0], (str, bytes)) else None)
settings = AlignSettings(
    num_frames=8, questions_per_kind=1, prompts="micro", ask=GenerationSettings(max_new_tokens=32, temperature=1.0),
    answer=GenerationSettings(max_new_tokens=8, temperature=1.0), critique=GenerationSettings(max_new_tokens=40),
    revise=GenerationSettings(max_new_tokens=8), chunk_videos=4, seed=1,
)
n = sum(1 for _ in propose(lm, sorted(videos.glob("*.mp4")), settings, out=out / "pairs.jsonl"))
print(json.dumps({"pairs": n, "opened": opened}))
"""


def test_the_loop_reads_only_model_and_videos(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    out.mkdir()
    build_videos(videos, 6, seed=3)
    done = subprocess.run(
        [sys.executable, "-c", _LOOP, str(videos), str(out), str(BASE_DIR)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (out / "pairs.jsonl").exists()
    code = {Path(p).resolve() for p in sys.path if p} | {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    allowed = (videos, out, BASE_DIR, Path(__file__).parents[2] / "savi", Path("/proc"), Path("/sys"), Path("/dev"), Path("/etc"))
    data = [p for p in said["opened"] if not p.endswith((".py", ".pyc", ".so")) and not any(Path(p).is_relative_to(a) for a in allowed)]
    stray = [
        p for p in data if Path(p).is_absolute() and not any(Path(p).resolve().is_relative_to(c) and "site-packages" in p for c in code)
    ]
    assert [p for p in stray if "benchmarks" in p or "truth" in p or p.endswith((".json", ".jsonl", ".arrow"))] == []
