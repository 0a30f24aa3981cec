"""The words of `emtoolkit train` before they are parsed, so that every parameter of a sweep is an option.

W&B's agent turns a parameter into `--name=value` with Python's text of the value, whatever the name: `--save_steps=25`,
`--control=True`, `--training.learning_rate=1e-05`. Its other macros write `name=value`, or all parameters as JSON.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emtoolkit.config.key_values import is_key, key_names, takes_boolean, values_of
from emtoolkit.errors import UserError, nearest, shown
from emtoolkit.json_files import parse_json
from emtoolkit.regular_files import read_regular
from emtoolkit.yaml_files import LARGEST_FILE

_KEY = "--key"
_BOOLEANS = {"true": True, "false": False}


def plain_words(words: Sequence[str], parameters: Sequence[Any], command: str) -> list[str]:
    """`words` with only the declared options, each under its own name; a key of the config becomes `--key=KEY=TEXT`.

    Args:
        words: the words after the command.
        parameters: the declared options and arguments of the command, as Click's `Parameter`.
        command: the name of the command, for errors.

    Raises:
        UserError: an unknown option, a flag that is neither true nor false, or two values for one option.
    """
    return _Reader(parameters, command).read(words)


class _Reader:
    """Rewrites the words of one command line."""

    def __init__(self, parameters: Sequence[Any], command: str) -> None:
        options = [each for each in parameters if each.param_type_name == "option"]
        self._options = {_normal(name[2:]): each for each in options for name in each.opts if name.startswith("--")}
        self._options["help"] = None
        # The options of a switch that is neither on nor off without them, such as --no-reuse.
        self._negated = {name: each.opts[0][2:] for each in options for name in each.secondary_opts}
        self._command = command
        self._values: dict[str, str] = {}

    def read(self, words: Sequence[str]) -> list[str]:
        """The rewritten words."""
        plain: list[str] = []
        left = list(words)
        config_read = False
        while left:
            word = left.pop(0)
            if word == "--":
                return [*plain, word, *left]
            if word.startswith("--"):
                plain += self._option(word[2:], left)
            elif word.startswith("-") and word != "-":
                # A short option, of which there is none: the parser names the word.
                plain.append(word)
            elif not config_read:
                config_read = True
                plain.append(word)
            else:
                assigned = _assignments(word)
                plain += [word] if assigned is None else [w for pair in assigned for w in self._with_value(*pair)]
        return plain

    def _option(self, word: str, left: list[str]) -> list[str]:
        """The option `word`, written without its hyphens; `left` are the words behind it, where its value may be."""
        name, equals, text = word.partition("=")
        if (positive := self._negated.get(f"--{_normal(name)}")) is not None and not equals:
            return self._with_value(positive, "False")
        if equals:
            return self._with_value(name, text)
        option = self._options.get(_normal(name), name)
        if option is None:
            return [f"--{name}"]
        if option is name:
            self._check_known(name)
            may_stand_alone = takes_boolean(name)
        else:
            may_stand_alone = option.is_flag
        if may_stand_alone:
            next_is_value = bool(left) and left[0].lower() in _BOOLEANS
            return self._with_value(name, left.pop(0) if next_is_value else "True")
        if not left:
            if option is name:
                raise UserError(f"--{name}: requires an argument; see '{self._command} --help'")
            return [option.opts[0]]
        return self._with_value(name, left.pop(0))

    def _with_value(self, name: str, text: str) -> list[str]:
        option = self._options.get(_normal(name))
        if option is None:
            self._check_known(name)
            return [f"{_KEY}={name}={text}"]
        flag = option.opts[0]
        if option.multiple:
            return [f"{flag}={text}"]
        if option.name == "seed":
            # W&B's q_uniform draws 16.0.
            ((_, seed),) = values_of("seed", text, flag)
            text = str(seed)
        if option.is_flag and text.strip().lower() not in _BOOLEANS:
            raise UserError(f"{flag}: {shown(text)} is not valid; expected true or false, or the flag alone")
        before = self._values.setdefault(flag, text)
        if before != text:
            raise UserError(f"{flag}: given as {shown(before)} and as {shown(text)}; give one of the two")
        if not option.is_flag:
            return [f"{flag}={text}"]
        return [flag] if _BOOLEANS[text.strip().lower()] else list(option.secondary_opts)

    def _check_known(self, name: str) -> None:
        if is_key(name):
            return
        flags = [each.opts[0] for each in self._options.values() if each is not None and not each.hidden]
        advice = f"; see '{self._command} --help'"
        keys = [f"--{key}" for key in key_names() if key.rpartition(".")[2] == name.replace("-", "_")]
        hint = f"; did you mean {keys[0]!r}?" if len(keys) == 1 else nearest(f"--{name}", flags)
        raise UserError(f"--{name}: no such option{hint or advice}")


def _normal(name: str) -> str:
    return name.replace("_", "-")


def _assignments(word: str) -> list[tuple[str, str]] | None:
    """The names and values in a word after the config, which is `name=value`, a JSON object, or a file of JSON.

    None for another word.
    """
    if word.startswith("{"):
        return _of_json(word.encode("utf-8", "surrogateescape"), "the JSON after CONFIG")
    if "=" in word:
        # Hydra's words begin with plus signs.
        name, _, text = word.lstrip("+").partition("=")
        return [(name, text)]
    if not word.endswith(".json"):
        return None
    try:
        content = read_regular(Path(word), LARGEST_FILE)
    except OSError as error:
        raise UserError(f"{word}: cannot be read ({error.strerror or error})") from None
    return _of_json(content, word)


def _of_json(text: bytes, place: str) -> list[tuple[str, str]]:
    try:
        content = parse_json(text, finite=False)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: {shown(content)} is not an object of names and values")
    return [(name, str(value)) for name, value in content.items()]
