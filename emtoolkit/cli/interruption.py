"""How a command ends when a signal interrupts it: one sentence, the shell's exit code, and no wait for W&B."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from emtoolkit.launch import is_local_main_process, signal_of, terminated_as_interrupted


@contextmanager
def ends_on_signal(advice: str, others: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """End the command on SIGINT, SIGTERM or one of the signals `others` with the sentence `interrupted; <advice>`.

    Notes on the exception stand before the advice.
    """
    try:
        with terminated_as_interrupted((signal.SIGTERM, *others)):
            yield
    except KeyboardInterrupt as interruption:
        from emtoolkit.artifacts.client_process import end_client

        end_client()
        if is_local_main_process():
            notes: Sequence[str] = getattr(interruption, "__notes__", ())
            typer.echo(f"emtoolkit: {', '.join(['interrupted', *notes])}; {advice}", err=True)
        raise typer.Exit(128 + signal_of(interruption)) from None
