"""What a run keeps of its model: every file of the export but the weights, tried at the start."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from data_prep.shards import Corpus
from training.checkpoints.corpus_samples import dump_samples, sample_corpus
from training.checkpoints.tokenizer_files import SETTINGS, read_object, write_tokenizer
from training.config.sections import Model
from training.model.multimodal import is_part
from training.model.skeleton import build_skeleton
from training.model.special_ids import SPECIAL_KEYS, special_ids, turn_end

MODEL_FOLDER = "model"
SAMPLES = "corpus_samples.json"
"""Of the corpus that is trained on; an export does not have it."""
IS_PART = "is_part.json"
"""Nor this: there where only the text model of a larger checkpoint is trained."""
_SCRATCH = "entrodrop_model"
"""transformers names modules after their folder: the code must not be taken for the base's."""
GENERATION = "generation_config.json"
FILE_SIZE = "5GB"
"""The most in a file of weights, if no single one is larger: transformers itself takes 50 GB."""
LICENCES = ("LICEN[CS]E*", "licen[cs]e*", "NOTICE*", "USE_POLICY*")
_ENDS = "eos_token_id"
_CARD = "README.md"
"""The base's names its licence, for that of an export."""
_CODE = "*.py"
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
_NOT_COMPARED = ("_name_or_path", "transformers_version")
_OLDER_NAMES = ("rope_theta", "partial_rotary_factor", "rope_scaling", "torch_dtype")
"""Of what a configuration has under newer names, too."""


def make_model_folder(
    model: Model, config: PretrainedConfig, corpus: Corpus, *, base: Path | None
) -> dict[str, bytes]:
    """Write what an export needs to a temporary folder, and load each part from there.

    Args:
        config: of the model that is trained; not changed.
        base: where the files are that came with the weights; None without such.

    Returns:
        Contents of the files by their names in the folder.

    Raises:
        ValueError: when a model so trained could not be exported.
    """
    samples = sample_corpus(corpus)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / _SCRATCH
        folder.mkdir()
        if base is not None:
            names = [GENERATION, _CARD, *LICENCES, *([_CODE] if model.trust_remote_code else [])]
            names += [] if _has_template_in_settings(corpus.tokenizer_dir) else _TEMPLATES
            _copy_base(base, folder, names=names)
        _save_config(config, folder)
        tokenizer = write_tokenizer(
            folder, corpus.tokenizer_dir, model=model, expected=samples.tokens
        )
        is_masked = any(shard.mask is not None for shard in corpus.manifest.shards)
        end = turn_end(tokenizer) if is_masked else None  # of conversations, maybe
        _finish_configs(folder, model=model, tokenizer=tokenizer, end=end)
        (folder / SAMPLES).write_bytes(dump_samples(samples))
        if base is not None and is_part(model):
            (folder / IS_PART).write_text("{}\n", encoding="utf-8")
        return read_folder(folder)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Contents of all files by their names in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def terms_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What says under which terms the base may be used."""
    patterns = (_CARD, *LICENCES)
    return {n: files[n] for n in files if any(fnmatchcase(n, pattern) for pattern in patterns)}


def find_base(model: Model) -> Path | None:
    """The folder of the weights, or the hub's snapshot with its small files; None from scratch.

    Raises:
        ValueError: when it is not there, and cannot be downloaded.
    """
    if model.pretrained is None:
        return None
    if Path(model.pretrained).is_dir():
        return Path(model.pretrained)
    from huggingface_hub import snapshot_download

    names = [
        "config.json",
        _CARD,
        GENERATION,
        *LICENCES,
        *_TEMPLATES,
        *([_CODE] if model.trust_remote_code else []),
    ]
    try:
        return Path(snapshot_download(model.pretrained, allow_patterns=names))
    except (ValueError, OSError) as error:  # a name of no repository, or no network
        reason = " ".join(str(error).split())
        raise ValueError(f"model.pretrained {model.pretrained}: not there: {reason}") from None


def _copy_base(base: Path, folder: Path, *, names: Sequence[str]) -> None:
    """What the corpus's tokenizer has too, is copied over it later."""
    for name in names:
        for path in base.rglob(name) if name == _CODE else base.glob(name):
            target = folder / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _has_template_in_settings(tokenizer: Path) -> bool:
    """A file of templates, as the base may have, would replace it."""
    settings = tokenizer / SETTINGS
    is_there = settings.is_file() and "chat_template" in read_object(settings)
    return is_there and not (tokenizer / _TEMPLATES[0]).is_file()


def _save_config(config: PretrainedConfig, folder: Path) -> None:
    """With references to code that is now in the folder itself."""
    config = copy.deepcopy(config)
    for name, source in (getattr(config, "auto_map", None) or {}).items():
        module = source.rpartition("--")[2] if isinstance(source, str) else ""
        if (folder / f"{module.partition('.')[0]}.py").is_file():
            config.auto_map[name] = module
    config.save_pretrained(folder)


def _finish_configs(folder: Path, *, model: Model, tokenizer: Any, end: int | None) -> None:
    """Build the model from what is there, and let both configurations say what ends a text.

    Args:
        end: also ends what is generated, as a token behind an answer.

    Raises:
        ValueError: when transformers cannot build it, or a key is lost on the way.
    """
    built = build_skeleton(folder, model)
    config = built.config
    # of a model from scratch, ids that its recipe does not name are defaults of its class
    own = config.to_dict() if model.config is None else model.config
    generation = _generation_of(built, folder / GENERATION, own=own)
    generation |= special_ids(tokenizer, _with_end(generation, end))
    content = {key: value for key, value in generation.items() if value is not None}
    _tell_of_invalid(content)
    (folder / GENERATION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for key, value in special_ids(tokenizer, own).items():
        # a few classes demand a number where this tokenizer has no such token
        with suppress(StrictDataclassFieldValidationError):
            setattr(config, key, value)
    config.architectures = [type(built).__name__]
    config.save_pretrained(folder)
    _add_older_names(folder / "config.json")
    again = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    if lost := _differences(config, again):
        raise ValueError(f"model: transformers does not keep {', '.join(lost)} in config.json")


def _with_end(generation: dict[str, Any], end: int | None) -> dict[str, Any]:
    own = generation.get(_ENDS)
    ends = own if isinstance(own, list) else [] if own is None else [own]
    return generation if end is None or end in ends else generation | {_ENDS: [*ends, end]}


def _tell_of_invalid(generation: dict[str, Any]) -> None:
    """transformers loads such a file, with a warning, and then refuses to write it."""
    try:
        GenerationConfig(**generation).validate(strict=True)
    except ValueError as error:
        print(
            f"WARNING: {GENERATION} of the model that is trained, which an export takes along, is "
            f"invalid: {' '.join(str(error).split())}",
            file=sys.stderr,
            flush=True,
        )


def _add_older_names(path: Path) -> None:
    """transformers 4 and what is built on it know RoPE and dtype by these names alone.

    Without them they take another base of the rotation, and say nothing. transformers 5 reads both.
    """
    content = read_object(path)
    rope = content.get("rope_parameters") or {}
    if "rope_theta" in rope:  # not where each kind of layer has its own
        content["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            content["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if rope.get("rope_type", "default") != "default":
            content["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if "dtype" in content:
        content["torch_dtype"] = content["dtype"]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _generation_of(built: Any, path: Path, *, own: Mapping[str, Any]) -> dict[str, Any]:
    """The base's own file as it is, or what transformers makes of the configuration."""
    if path.is_file():
        return read_object(path)
    made = built.generation_config.to_diff_dict() if built.can_generate() else {}
    public = {key: value for key, value in made.items() if not key.startswith("_")}
    return public | {key: own.get(key) for key in SPECIAL_KEYS}


def _differences(config: PretrainedConfig, again: PretrainedConfig) -> list[str]:
    """Apart from names that were added for older readers, which a few classes (phi3) then keep."""
    ours, theirs = config.to_dict(), again.to_dict()
    added = [key for key in _OLDER_NAMES if key not in ours]
    return [
        f"{key} {ours.get(key)!r} (read back as {theirs.get(key)!r})"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in (*_NOT_COMPARED, *added) and ours.get(key) != theirs.get(key)
    ]
