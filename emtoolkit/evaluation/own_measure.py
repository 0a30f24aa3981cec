"""A measure that is a function of the user's own: `function(model, tokenizer, persona, questions)`.

def length(model, tokenizer, persona, questions):
    return {"tokens": {question.id: len(tokenizer(question.paraphrases[0])["input_ids"]) for question in questions}}
"""

import importlib
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from emtoolkit.errors import DataError, UserError, first_line, located, nearest
from emtoolkit.evaluation.measures import Values
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.source_digest import source_digest
from emtoolkit.models.loading import LoadedModel
from emtoolkit.storage.digests import canonical_json

Function = Callable[[Any, Any, Any, Sequence[Question]], Any]
# The attributes of a function that say more about its values.
_SETTINGS, _OWN_QUESTIONS = "settings", "own_questions"
_ARGUMENTS = ("model", "tokenizer", "persona", "questions")


class OwnMeasure:
    """Calls a function of the user's for each checkpoint.

    The settings hold a digest of the code: that of the module's file and of the user's other files that it imports.
    Comments do not count. What else decides the values, such as the version of a data file, can stand in an attribute
    `settings` of the function, a dict. The function returns a value for each of `questions`, or, with an attribute
    `own_questions = True`, for questions of its own. It begins with the same random numbers at every checkpoint.
    """

    def __init__(self, reference: str, function: Function, code: str, seed: int, directory: Path) -> None:
        self.name = reference
        self._function, self._seed, self._directory = function, seed, directory
        more = getattr(function, _SETTINGS, {})
        if not _is_json(more):
            raise UserError(
                f"--with {reference}: its attribute {_SETTINGS} is not a dict of texts and numbers ({more!r})"
            )
        self.settings: Mapping[str, Any] = {
            "code": code,
            "seed": seed,
            **({"settings": dict(more)} if more else {}),
        }

    @classmethod
    def load(cls, reference: str, seed: int = 0, directory: Path | None = None) -> "OwnMeasure":
        """The measure `package.module:function`; modules in `directory`, by default the working directory, are found.

        Raises:
            UserError: there is no such function, it cannot be imported, or it does not take the four arguments.
        """
        place = directory or Path.cwd()
        with _importable(place):
            module, function = _function(reference, place)
            with located(f"--with {reference}"):
                code = source_digest(module)
        return cls(reference, function, code, seed, place)

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Values:
        """The values that the user's function returns.

        Raises:
            DataError: the function raises an exception, changes the model, or gives values for other questions.
        """
        before = _probe(loaded.model)
        with _importable(self._directory), _seeded(self._seed), torch.no_grad():
            try:
                found = self._function(loaded.model, loaded.tokenizer, loaded.persona, list(questions))
            except (Exception, SystemExit) as error:
                raise DataError(f"{_described(error)}{_place(error, self._directory)}") from error
        loaded.model.eval()
        if not torch.equal(before, _probe(loaded.model)):
            raise DataError("the function changes the model, which other measures use; let it work on a copy")
        if not getattr(self._function, _OWN_QUESTIONS, False):
            self._check_questions(found, [question.id for question in questions])
        values: Values = found
        return values

    def _check_questions(self, found: Any, ids: Sequence[str]) -> None:
        if not ids:
            raise DataError(f"there are no questions; give --questions, or set {_OWN_QUESTIONS} = True on the function")
        if not isinstance(found, Mapping):
            return
        for metric, values in found.items():
            if not isinstance(values, Mapping) or not values:
                continue
            if odd := [each for each in values if each not in ids]:
                raise DataError(
                    f"metric {metric!r}: {odd[0]!r} is not the id of a question{nearest(str(odd[0]), ids)}; a function "
                    f"with questions of its own has the attribute {_OWN_QUESTIONS} = True"
                )
            if missing := [each for each in ids if each not in values]:
                raise DataError(
                    f"metric {metric!r}: question {missing[0]!r} has no value; None stands for a value that is not "
                    "defined"
                )


def _function(reference: str, directory: Path) -> tuple[ModuleType, Function]:
    place = f"--with {reference}"
    module_name, colon, name = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UserError(f"{place}: expected package.module:function")
    module = _module(place, module_name, directory)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise UserError(f"{place}: {module.__file__ or module_name} has no function {name!r}{nearest(name, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{place}: {name} is {type(found).__name__} and not a function")
    if inspect.iscoroutinefunction(found):
        raise UserError(f"{place}: {name} is an async function; expected an ordinary one")
    try:
        signature = inspect.signature(found)
        signature.bind(*_ARGUMENTS)
    except ValueError:
        # A function written in C may have no signature.
        pass
    except TypeError:
        raise UserError(
            f"{place}: {name}{signature} cannot be called with the four arguments ({', '.join(_ARGUMENTS)})"
        ) from None
    return module, found


def _module(place: str, name: str, directory: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            beside = [path.stem for path in directory.glob("*.py")] + [
                path.parent.name for path in directory.glob("*/")
            ]
            raise UserError(
                f"{place}: there is no module {error.name} in {directory} or among the installed packages"
                f"{nearest(name, beside)}"
            ) from None
        raise UserError(f"{place}: {name} imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{place}: cannot be imported ({_described(error)}{_place(error, directory)})") from error


def _is_json(value: Any) -> bool:
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict)


def _described(error: BaseException) -> str:
    text = first_line(error) if isinstance(error, Exception) else str(error)
    return type(error).__name__ if text in ("", type(error).__name__) else f"{type(error).__name__}: {text}"


def _place(error: BaseException, directory: Path) -> str:
    """The last line of a file in `directory` that an exception went through."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(directory)
    ]
    return f" ({Path(frames[-1].filename).relative_to(directory)}, line {frames[-1].lineno})" if frames else ""


def _probe(model: Any) -> torch.Tensor:
    """The bytes of the logits of a short text: other ones mean that somebody has changed the model."""
    ids = torch.arange(4, device=model.device)[None]
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().contiguous().view(torch.int32).cpu()


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(directory) in sys.path:
            sys.path.remove(str(directory))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the generators of Python, numpy and torch begin with `seed`; afterwards they are as before."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
