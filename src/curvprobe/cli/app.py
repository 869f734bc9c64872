"""The application that the commands register with, and what its help says first."""

from __future__ import annotations

from typing import Annotated

import typer

import curvprobe
from curvprobe.cli.processes import refuse_alone

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"""
Measure how much the loss landscape around a trained PyTorch model still moves when data is added, and in which
directions.

**First steps**

- `curvprobe demo` trains a small classifier and analyses it: about half a minute, nothing to download.
- `curvprobe demo --task text` does the same with a small language model: some minutes.
- `curvprobe experiment decay` repeats an experiment of the paper; `curvprobe experiment --help` lists them.
- `curvprobe doctor my_task.py:task` checks your own model, loss and data, and says how long an analysis will take.
- `curvprobe plan my_task.py:task` says what each stage of an analysis will take: products, time, memory.
- `curvprobe compare runs/a runs/b` sets finished runs side by side: checkpoints, seeds, recipes.
- `curvprobe report runs/mine` writes its report anew, with names for the candidates.
- `curvprobe surface my_task.py:task --out runs/surface` draws the loss over a plane: eigenvectors, random filters,
  or to other checkpoints.
- `curvprobe forecast my_training.py:fit --k 400` answers another question, whether more data helps, and says how often
  such answers are right.
- `curvprobe run my_task.py:task --out runs/mine` analyses your own model: `task` is a function that returns
  `curvprobe.Task(model, loss, data, candidates)`.
- `curvprobe run --hf my_model --text corpus.txt --out runs/lm` analyses a language model or a classifier of Hugging
  Face in a folder, or an adapter of peft; `--params lora` and its like choose a part.

**What a run leaves** in its folder: `report.html` (a page with sliders, to open and to send), `result.json` (every
number with its standard error and verdict), figures as PNG and PDF, and the finished stages; a run that is interrupted
goes on from the last finished stage when it is repeated.

`curvprobe --install-completion` completes commands and options in your shell.

Version {curvprobe.__version__}. Exit code: 0 done, 1 the task cannot be analysed (the message says why), 2 wrong usage,
3 a condition of `--fail-if` is met, 130 interrupted by Ctrl-C, 143 ended by SIGTERM: repeat the command to go on.
""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curvprobe {curvprobe.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    refuse_alone(context.invoked_subcommand)
