"""One sentence with the key and the fix, out of jsonargparse's error texts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# What jsonargparse says about its own search through a type, beside what is wrong.
_BESIDE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value( type)?: .*|"
    r"Expected a <class 'NoneType'>.*|Expected a <class 'collections.abc.Iterable'>.*|"
    r"Problem with given class_path .*|Parser key \"[^\"]*\": Unable to load config .*|"
    r"Expected a path but .* either not accessible or invalid|Not a valid subclass of .*|Subclass types expect one of:|"
    r"a class path \(str\)|a dict with.* class_path .*|a dict with parameters accepted by .*)$"
)
# What is wrong if it is said; what else the type might have been is then not.
_CERTAIN = re.compile(
    r"Expected a dot import path string: |(Type .* a callable class: )?Option '.*' is not accepted|"
    r"the following arguments are required: |.* is abstract$|module '.*' has no attribute |No module named "
)
_KEY = re.compile(r'^Parser key "(.*)":$')
TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text",
    "list": "a list, such as [a, b]", "Sequence": "a list, such as [a, b]",
    "dict": "keys with values", "Mapping": "keys with values",
}  # fmt: skip

_OPTIMIZER = "set model.optimizer.init_args.lr, with model.optimizer.class_path such as torch.optim.AdamW"
_DATA = "the options of RolloutDataModule stand directly under data"
ELSEWHERE = {
    "lr": _OPTIMIZER,
    "learning_rate": _OPTIMIZER,
    "optimizer": "set model.optimizer, as in --model.optimizer torch.optim.AdamW --model.optimizer.lr 1e-5",
    "lr_scheduler": "set model.lr_scheduler, as in --model.lr_scheduler torch.optim.lr_scheduler.ConstantLR",
    "model_name_or_path": "set model.init_args.policy.path",
    "reward_funcs": "set model.init_args.verifiers",
    "loss_type": "set model.init_args.aggregation",
    "num_iterations": "set model.init_args.updates_per_rollout",
    "gradient_accumulation_steps": "set model.init_args.max_tokens_per_microbatch",
    "dataset_name": "set data.task",
    "num_generations": "set data.group_size",
    "per_device_train_batch_size": "set data.prompts_per_step",
    "max_completion_length": "set data.sampling.max_new_tokens",
    "max_prompt_length": "set data.max_prompt_tokens",
    "temperature": "set data.sampling.temperature",
    "num_train_epochs": "set trainer.max_steps",
    "epochs": "set trainer.max_epochs or trainer.max_steps",
    "data.class_path": _DATA,
    "data.init_args": _DATA,
    "output_dir": "set run_dir",
}
"""Keys that users of LightningCLI and TRL know, and where these settings are here."""

_EXTRAS = {"bitsandbytes": "quantised"}
"""Packages whose classes a config may name, and the extras that bring them."""

_EXAMPLES = {
    "LoRAConfig": "{r: 16, alpha: 32}",
    "RefinementConfig": "{mode: distill}",
    "ResampleConfig": "{max_rounds: 3}",
    "SamplingParams": "{temperature: 1.0}",
    "PolicyConfig": "{path: FOLDER}",
}
"""Options of the classes that are configured by options alone."""


def sentence(message: str, names: Sequence[str], concrete: dict[str, list[str]]) -> str:
    """The key and the reasons out of one of jsonargparse's error texts.

    Args:
        message: that text.
        names: what a config can name; the nearest one is suggested, if one is near.
        concrete: the classes that can be named where an abstract one is asked for, by the name of that one.
    """
    message = re.sub(r'^Parser key "(.*)": (?=.)', r"\1: ", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys = [found[1] for line in lines if (found := _KEY.match(line))]
    reasons = [line for line in lines if line and not _BESIDE.match(line) and not _KEY.match(line)]
    reasons = [line for line in reasons if _CERTAIN.match(line)] or reasons
    key = ".".join(keys)
    options = next((name for name in _EXAMPLES if re.search(rf"Subtypes: \[.*\.{name}'>", message)), None)
    is_scalar = re.search(r"Given value type: <class '(bool|str|int|float)'>", message)
    if options and is_scalar and not re.search(rf"Problem with given class_path '[\w.]*{options}'", message):
        return f"{key}: give its options, such as {_EXAMPLES[options]}, or omit it"
    no_subclass = re.search(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)", message)
    if no_subclass:
        given = no_subclass[1] or re.findall(r"^\s*Given value: ((?!NestedArg)\S+)$", message, re.MULTILINE)[0]
        function = f"{{class_path: FunctionVerifier, init_args: {{function: {given}}}}}"
        hint = f": if it is a function, write {function}" if no_subclass[2] == "Verifier" else ""
        return f"{key}: {given} is not a subclass of {no_subclass[2]}{hint}"
    unnamed = re.search(r"Expected an instantiatable class, but [\w.]*?(\w+) is abstract", message)
    # Of a name or a class, jsonargparse drops the class from its error, but says what was given.
    unnamed = unnamed or re.search(
        r"but is abstract$.*?^ *Given value: [\w.]*?(\w+)$", message, re.DOTALL | re.MULTILINE
    )
    unnamed = unnamed or (None if reasons else re.search(r"Not a valid subclass of (\w+)", message))
    if unnamed and unnamed[1] in concrete:
        return f"{'.'.join([*keys, 'class_path'])}: give one of {', '.join(concrete[unnamed[1]])}"
    text = _joined([_plain(line, message) for line in reasons]) or message.strip()
    names_too = re.search(r"Expected a typing\.Literal\[(.*)\]", message)
    no_class = re.match(r"Expected a dot import path string: (.*)", text)
    if names_too and no_class:
        choices = names_too[1].replace("'", "")
        hint = _with_hint("", text, names)[len(text) :]
        return f"{key}: must be one of {choices}, or a class by its class_path, not {no_class[1]}{hint}"
    return _with_hint(key, text, names)


def _joined(reasons: list[str]) -> str:
    """Reasons that differ only in the type they ask for are one."""
    wanted = [re.fullmatch(r"must be (.*?)((?:, not .*)?)", reason) for reason in reasons]
    if wanted and all(wanted):
        kinds = dict.fromkeys(found[1] for found in wanted if found)
        return f"must be {' or '.join(kinds)}{wanted[0][2] if wanted[0] else ''}"
    return "; ".join(dict.fromkeys(reasons))


def _plain(reason: str, message: str) -> str:
    """A reason without the parser's notation of types."""
    given = re.findall(r"^\s*Given value: ((?!NestedArg).*)$", message, re.MULTILINE)
    missing = re.search(r"No module named '(\w+)'", reason)
    if missing and missing[1] in _EXTRAS:
        return f"{missing[1]} is not installed: pip install 'grpo-lightning[{_EXTRAS[missing[1]]}]'"
    unloadable = re.match(r"Unable to load config '(.*?)'", reason)
    if unloadable:
        return f"must be keys with values, not {unloadable[1]}"
    found = re.match(r"(?P<key>[\w.]+: )?Expected a (?P<type>.*?)(\. Got value: (?P<value>.*))?$", reason)
    if found:
        value = found["value"] or (given[0] if given else "")
        but = f", not {value}" if value else ""
        kind = re.fullmatch(r"<class '(?:collections\.abc\.)?(\w+)'>", found["type"])
        if kind and kind[1] in TYPES:
            return f"{found['key'] or ''}must be {TYPES[kind[1]]}{but}"
        choices = re.fullmatch(r"typing.Literal\[(.*)\]", found["type"])
        if choices:
            return f"{found['key'] or ''}must be one of {choices[1].replace(chr(39), '')}{but}"
    classes = re.findall(r"Problem with given class_path '[\w.]*?(\w+)'", message)
    required = re.match(r"the following arguments are required: (.*)", reason)
    if required and classes:
        return (
            f"{classes[-1]} needs {required[1]}: write {{class_path: {classes[-1]}, init_args: "
            f"{{{required[1].split(',')[0]}: ...}}}}"
        )
    if required:
        keys = ", ".join(re.sub(r"^(fit|validate|test|predict)\.", "", key) for key in required[1].split(", "))
        return f"{keys}: required: give a config that holds them, with --config FILE.yaml"
    if reason.endswith("Option 'class_path' is not accepted"):
        return "put the options of a class under init_args, as in {class_path: NAME, init_args: {OPTION: VALUE}}"
    return reason


_UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[\w.]+)' does not accept option '(?P<inside>[\w.]+)'|"
    r"Option '(?P<option>[\w.]+)' is not accepted|does not accept option '(?P<top>[\w.]+)'|"
    r"unrecognized arguments: --(?P<given>[\w.]+))"
)


def _with_hint(key: str, text: str, names: Sequence[str]) -> str:
    """Say of an unknown key where its setting is, and of an unknown class which one was probably meant."""
    unknown = _UNKNOWN.search(text)
    if unknown:
        place = ".".join(part for part in unknown.groups() if part)
        return no_such_key(place if not key or place.startswith(f"{key}.") else f"{key}.{place}", names)
    wrong = re.search(r"import path string: '?([\w.]+)", text)
    missing = [part for part in wrong[1].split(".") if part not in names] if wrong else []
    near = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.7) if missing else []
    return (f"{key}: " if key else "") + text + (f" (did you mean {near[0]}?)" if near else "")


def no_such_key(place: str, names: Iterable[str]) -> str:
    """The sentence about a key that does not exist: where its setting is, or what was probably meant.

    Args:
        place: the key, with those above it.
        names: keys that exist; the nearest one is suggested, if one is near.
    """
    *above, last = place.split(".")
    elsewhere = ELSEWHERE.get(place) or ELSEWHERE.get(last)
    if elsewhere and not {"callbacks", "logger"} & set(above):
        return f"{place}: there is no such key: {elsewhere}"
    names = sorted(names)
    missing = above[0] if above and above[0] not in names else last
    near = difflib.get_close_matches(missing, names, n=1, cutoff=0.7)
    return f"{place}: there is no such key" + (f" (did you mean {near[0]}?)" if near else "")
