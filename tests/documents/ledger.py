"""What becomes of each code block of README and docs/: test_commands_slow.py runs all command lines but those named here, with a reason."""

from __future__ import annotations

NOT_RUN = {
    "pip install": "installs packages; its requirement is read, and tests/documents/test_wheel_slow.py installs the wheel",
    "tox": "starts this suite; that the environment exists is tested",
    "git clone": "needs an address",
    "torchrun": "tests/reproduce/paper/test_several_slow.py starts several processes, at smoke size",
    "accelerate": "tests/harness/run/test_evaluate_slow.py runs it with lmms-eval",
    "python -m reproduce paper --scale 8b": "needs a GPU and the hub",
    "python -m reproduce paper --scale 1b": "needs a GPU and the hub; tests/reproduce/paper/test_paper_scale_slow.py has a tiny model",
    "HF_HOME=twins python -m reproduce paper --scale 1b": "as the line before it",
    "python -m reproduce bases --seeds 1-10": "trains for an hour and a half; tests/reproduce/bases/test_bases_slow.py makes one",
    "python -m reproduce study --bases 10": "runs for hours; tests/reproduce/study/test_study_slow.py has a small one",
    "python -m reproduce study-table runs/study": "needs a study; tests/reproduce/study/test_run.py makes it from made-up records",
    "python -m reproduce study-figures runs/study": "as the line before it",
    "python -m harness view": "ends only with Ctrl-C; tests/harness/view/test_view_cli.py starts it",
    "python -m savi align VIDEOS --model OpenGVLab/InternVL2_5-1B": "needs the hub; the line before it is the same on the shipped model",
    "python -m savi ask DIR/clip.mp4": "needs the hub",
    "python -m savi ask VIDEO": "tests/test_release.py runs it with a tiny checkpoint",
    "python -m benchmarks prepare --plan": "needs the hub; tests/benchmarks/data/test_prepare.py has one of its own",
    "python -m benchmarks prepare --download": "needs the hub; tests/benchmarks/data/test_prepare.py has one of its own",
    "transformers serve": "tests/savi/server/test_transformers_serve_slow.py starts it with the micro model",
    "python -m savi pairs clips/ --model openai:": "needs a server; tests/savi/cli/test_servers.py has one of its own",
    "python -m savi align clips/ --model models/InternVL2_5-1B --critic openai:": "needs a server; tests/savi/cli/test_servers.py has one",
}
"""How a command line begins -> why test_commands_slow.py does not run it. Synopses (blocks with brackets) are not run either."""

OTHER = {
    ("README.md", "import savi"): "tests/documents/test_commands_slow.py",
    ("README.md", "runs/micro/run.json"): "tests/documents/test_commands_slow.py",
    ("README.md", "savi         aligns"): "tests/documents/test_blocks.py",
    ("docs/align.md", "aligned/iter-1/pairs.jsonl"): "tests/documents/test_commands_slow.py",
    ("docs/cluster/README.md", "error: process 3"): "tests/documents/test_blocks.py",
    ("docs/gate.md", "exceptions:"): "tests/documents/test_blocks.py",
    ("docs/report.md", "report.html#tempcompass/1025/3"): "tests/harness/report/test_browser.py",
}
"""Blocks that are no commands, by page and first line -> the test that holds them against the code."""


def reason(command: str) -> str | None:
    """Why a command line is not run; None where it is."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)
