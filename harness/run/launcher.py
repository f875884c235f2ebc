"""`python -m harness lmms-eval ...`: lmms-eval's own command line, unchanged, also where the installed torchvision does not match torch.

lmms-eval imports torchvision before it looks for models, so a workaround in the model's module would come too late. Where torchvision is
fine, `lmms-eval ...` and this are the same.
"""

from __future__ import annotations

import sys

import typer

from savi.base.torchvision import fix_torchvision


def register(app: typer.Typer) -> None:
    """Mount the command; every argument is lmms-eval's, --help too."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
    app.command("lmms-eval", context_settings=settings, add_help_option=False)(lmms_eval)


def lmms_eval(context: typer.Context) -> None:
    """lmms-eval's own command line, unchanged: for machines where `lmms-eval` itself ends with "torchvision::nms does not exist"."""
    fix_torchvision()
    from lmms_eval.cli.dispatch import main

    sys.argv = ["lmms-eval", *context.args]
    main()
