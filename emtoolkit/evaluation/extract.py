"""The activations of every checkpoint of an evaluation on one set of texts, a file for each step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emtoolkit.data.rendering import rendered_on
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.activations import Text, activations, is_written, texts_digest, texts_of, write_activations
from emtoolkit.evaluation.downloads import downloading_ahead
from emtoolkit.evaluation.identity import training_day
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.evaluation.store import says_what_is_kept
from emtoolkit.evaluation.texts import TextOptions, tokenized
from emtoolkit.models.loading import ModelLoader
from emtoolkit.progress import Progress, no_library_bars
from emtoolkit.trajectory import Checkpoint


def write_all_activations(
    directory: Path,
    checkpoints: Sequence[Checkpoint],
    rows: Sequence[AnswerRow],
    loader: ModelLoader,
    progress: Progress,
    options: TextOptions | None = None,
) -> list[str]:
    """Write `step-N.safetensors` for each checkpoint into `directory`, unless it is there.

    All checkpoints read the same texts: given answers, or sample 0 of each wording, as the first step of `rows`
    answered.

    Returns:
        A sentence for each text without an answer, and for files of other steps on other texts.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, or a file cannot be read or written.
        DataError: no question is chosen, or a prompt cannot be rendered.
    """
    options = options or TextOptions()
    chosen = options.chosen(rows)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be made ({error.strerror or error})") from error
    gaps, written = set[str](), list[Path]()
    texts: Sequence[Text] = ()
    known: dict[Any, Sequence[Text]] = {}
    with says_what_is_kept(lambda: len(written), "files of activations"), downloading_ahead(checkpoints) as in_order:
        for done, checkpoint in enumerate(in_order):
            progress("extracting activations", done, len(checkpoints))
            described = loader.describe(checkpoint)
            origin = (id(described.tokenizer), described.persona, day := training_day(checkpoint))
            if origin not in known:
                with rendered_on(day):
                    known[origin] = tokenized(described, chosen)
            texts = known[origin]
            facts = {
                "step": checkpoint.step,
                "fingerprint": "" if checkpoint.manifest is None else checkpoint.manifest.fingerprint,
                "persona": described.persona_override or described.persona.name,
                "answers_of_step": None if options.given else min(row.step for row in rows),
                "shape": "[texts, layers + 1, hidden]; index 0 is the output of the embeddings",
            }
            path = directory / f"step-{checkpoint.step}.safetensors"
            if not is_written(path, texts, facts):
                with no_library_bars():
                    loaded = loader.load(checkpoint)
                write_activations(path, activations(loaded.model, texts), facts)
                written.append(path)
            gaps |= {text.name for text in texts if not text.answer}
    notes = [f"activations: {name} has no answer, so its answer mean is NaN" for name in sorted(gaps)]
    return [*notes, *_on_other_texts(directory, texts)]


def _on_other_texts(directory: Path, texts: Sequence[Text]) -> list[str]:
    """A sentence if `directory` holds activations on other texts."""
    others = [path for path in directory.glob("step-*.safetensors") if texts_of(path) != texts_digest(texts)]
    if not others:
        return []
    names = ", ".join(sorted(path.stem for path in others))
    return [
        f"activations: {names} in {directory} were read on other texts, so they do not compare with these steps; "
        "evaluate all steps at once, or give --answers FILE"
    ]
