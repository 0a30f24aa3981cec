"""The activations of every checkpoint of an evaluation on one set of texts, a file for each step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.activations import Text, activations, is_written, write_activations
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.models.loading import ModelLoader
from emtoolkit.progress import Progress, no_library_bars
from emtoolkit.trajectory import Checkpoint


def write_all_activations(
    directory: Path,
    checkpoints: Sequence[Checkpoint],
    rows: Sequence[AnswerRow],
    loader: ModelLoader,
    progress: Progress,
) -> list[str]:
    """Write `step-N.safetensors` for each checkpoint into `directory`, unless it is there.

    All checkpoints read the same texts: sample 0 of each wording, as the first step of `rows` answered.

    Returns:
        A sentence for each text without an answer.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, or a file cannot be read or written.
    """
    first = min(row.step for row in rows)
    chosen = [row for row in rows if row.step == first and row.sample == 0]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be made ({error.strerror or error})") from error
    gaps: set[str] = set()
    for done, checkpoint in enumerate(checkpoints):
        progress("extracting activations", done, len(checkpoints))
        with no_library_bars():
            loaded = loader.load(checkpoint)
        texts = [_text(loaded.tokenizer, row) for row in chosen]
        facts = {
            "step": checkpoint.step,
            "fingerprint": "" if checkpoint.manifest is None else checkpoint.manifest.fingerprint,
            "persona": loaded.persona_override or loaded.persona.name,
            "answers_of_step": first,
            "shape": "[texts, layers + 1, hidden]; index 0 is the output of the embeddings",
        }
        path = directory / f"step-{checkpoint.step}.safetensors"
        if not is_written(path, texts, facts):
            write_activations(path, activations(loaded.model, texts), facts)
        gaps |= {text.name for text in texts if not text.answer}
    return [f"activations: {name} has no answer, so its answer mean is NaN" for name in sorted(gaps)]


def _text(tokenizer: Any, row: AnswerRow) -> Text:
    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Text(f"{row.question}/{row.paraphrase}", tokens(row.prompt), tokens(row.answer) if row.answer else ())
