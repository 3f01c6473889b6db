# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models given by name: their configurations and tokenizers, read and checked before any weights are loaded."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftConfig
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import find_adapter_config_file

from trl_ext.critic_modes import CRITIC_MODES
from trl_ext.files import write_json
from trl_ext.folders import found_again, portable
from trl_ext.messages.printable import first_line
from trl_ext.text.tokens import has_vocabulary

ADAPTER_CONFIG = "adapter_config.json"
BASE_RECORD = "base_model.json"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class PolicySource(NamedTuple):
    """Parts of a policy given by name.

    Attributes:
        base: Name or folder of the causal LM.
        config: Configuration of the causal LM.
        adapter: Configuration of the LoRA adapter with this name; None for a whole model.
    """

    base: str
    config: PretrainedConfig
    adapter: PeftConfig | None


def hub_options(init_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` that say where files come from."""
    return {name: init_kwargs[name] for name in _HUB_OPTIONS if name in init_kwargs}


def find_policy(
    name: str,
    init_kwargs: dict[str, Any],
    *,
    option: str = "model",
    base_model: str | None = None,
    base_option: str | None = None,
) -> PolicySource:
    """Find the causal LM, or the LoRA adapter with its base, under `name`.

    Args:
        name: Name on the Hub, or folder.
        init_kwargs: Keyword arguments of `from_pretrained`; those that say where files come from are used.
        option: Option or argument that gives `name`, for messages.
        base_model: Base of the adapter, where it is not the one that the adapter names; ignored for a whole model.
        base_option: Option that gives `base_model`, for messages.

    Raises:
        ValueError: when no model is found, or one that generates no text.
    """
    subject, adapter = f"`{option}` {name!r}", _find_adapter(name, init_kwargs, option)
    if adapter is None:
        config = find_config(name, init_kwargs, subject, "a causal language model or of a LoRA adapter")
        check_generates(config, subject)
        return PolicySource(name, config, None)
    base = base_model or adapter.base_model_name_or_path
    task = getattr(adapter.task_type, "value", adapter.task_type)
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{subject} is an adapter for the task {task}, not for a causal language model (CAUSAL_LM); a reward "
            "adapter belongs in `reward_adapters`."
        )
    where = f"`{base_option}`" if base_option else f"`base_model_name_or_path` of its `{ADAPTER_CONFIG}`"
    if not base:
        raise ValueError(
            f"{subject} is an adapter that does not name its base; {'give' if base_option else 'write'} "
            f"the base's folder {'with' if base_option else 'into'} {where}."
        )
    subject = f"The base {base!r} of the adapter {name!r}"
    options = {key: value for key, value in init_kwargs.items() if key != "revision"}  # which is the adapter's
    if _find_adapter(base, options, "model") is not None:
        raise ValueError(f"{subject} is an adapter itself; merge it into its own base first (`trl_ext merge`).")
    preposition = "with" if base_option else "in"
    config = find_config(base, options, subject, f"a causal language model {preposition} {where}")
    check_generates(config, subject)
    return PolicySource(base, config, adapter)


def record_base(folder: Path, name: str | None) -> None:
    """Write into the folder of a policy which model its training began from; nothing where the model has no name.

    A folder is recorded as it was named and by its place beside this one, so that it is found from anywhere, also where
    both were moved together.
    """
    if name and Path(name).is_dir():
        given, place = portable(name, folder)
        write_json(folder / BASE_RECORD, {"base_model": given, "place": place})
    elif name:
        write_json(folder / BASE_RECORD, {"base_model": name})


def recorded_base(folder: Path) -> str | None:
    """Return the model that the training of a policy began from, as `record_base` wrote it; None without a record."""
    try:
        record = json.loads((folder / BASE_RECORD).read_text(encoding="utf-8"))
        base, place = record["base_model"], record.get("place")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if isinstance(base, str) and isinstance(place, str):
        return found_again(base, place, folder)
    return base if isinstance(base, str) else None


def find_critic(name: str, init_kwargs: dict[str, Any]) -> PretrainedConfig:
    """Read the configuration of a separate critic given by name.

    Raises:
        ValueError: when there is no such mode and no such model, or an adapter under that name.
    """
    if _find_adapter(name, init_kwargs, "critic") is not None:
        raise ValueError(
            f"`critic` {name!r} is an adapter, and a critic by name is a whole model; merge the adapter into its base "
            "first, or use `critic='adapter'`, which trains a new one."
        )
    modes = ", ".join(f"'{mode}'" for mode in CRITIC_MODES)
    return find_config(name, init_kwargs, f"`critic` {name!r}", f"a model, or one of {modes}")


def find_config(name: str, init_kwargs: dict[str, Any], subject: str, wanted: str) -> PretrainedConfig:
    """Read the configuration of a model given by name.

    Args:
        name: Name on the Hub, or folder.
        init_kwargs: Keyword arguments of `from_pretrained`; those that say where files come from are used.
        subject: Beginning of a message: the option and the name, as the user gave them.
        wanted: Kinds of models that the option takes, for messages.

    Raises:
        ValueError: when there is no such model, or its configuration cannot be read.
    """
    _check_place(name, subject, wanted)
    options = hub_options(init_kwargs)
    if "subfolder" in init_kwargs:
        options["subfolder"] = init_kwargs["subfolder"]
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=bool(init_kwargs.get("trust_remote_code")), **options)
    except Exception as error:  # transformers raises many kinds, down to a validator's own class
        raise ValueError(f"{subject} {_reason(error, wanted)}") from None


def check_generates(config: PretrainedConfig, subject: str) -> None:
    """Check by its configuration that a model generates text.

    Raises:
        ValueError: when the model is no causal language model.
    """
    known, names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()), config.architectures or []
    if getattr(config, "auto_map", None):
        return  # an architecture of the repository's own code
    fits = known.intersection(names) if names else type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not fits or config.is_encoder_decoder:
        kind = names[0] if names else f"model of type '{config.model_type}'"
        raise ValueError(f"{subject} is a {kind}, not a causal language model; give one that generates text.")


def check_quantization_library(quantization: Any) -> None:
    """Check that the library for a quantized model is installed.

    Args:
        quantization: A `BitsAndBytesConfig`, the `quantization_config` of a `config.json`, or None.

    Raises:
        ImportError: when the model needs bitsandbytes, which is not installed.
    """
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    if "bitsandbytes" in str(getattr(method, "value", method)) and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("Quantization needs bitsandbytes; install it with `pip install 'trl_ext[quantization]'`.")


def load_tokenizer(name: str, init_kwargs: dict[str, Any], *, base_model: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved with a policy, or with the base of a LoRA adapter.

    `base_model` is the base of an adapter, where it has moved.

    Raises:
        ValueError: when no tokenizer can be loaded.
    """
    options, trust = hub_options(init_kwargs), bool(init_kwargs.get("trust_remote_code"))
    names = [name]
    adapter = _find_adapter(name, options, "model")
    base = adapter and (base_model or adapter.base_model_name_or_path)
    if base:
        names = [name] * _has_tokenizer(name) + [base]
    problem = ""
    for source in names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust, **options)
        except Exception as error:  # as in `find_config`
            problem = problem or f" ({first_line(error)})"
            continue
        if has_vocabulary(tokenizer):
            return tokenizer
    if not _has_tokenizer(names[-1]):
        problem = ""
    raise ValueError(
        f"`model` {name!r} has no tokenizer that can be loaded{problem}; give `processing_class`, or save one there "
        "(`tokenizer.save_pretrained`)."
    )


def first_tokenizer(*sources: str | None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of the first name or folder that has one; None where none has."""
    for source in filter(None, sources):
        try:
            return AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError):
            continue
    return None


def _has_tokenizer(name: str) -> bool:
    """Return whether a folder holds a tokenizer's files; True for a name on the Hub."""
    return not Path(name).is_dir() or any(Path(name).glob("token*")) or any(Path(name).glob("*.model"))


def _check_place(name: str, subject: str, wanted: str) -> None:
    """Refuse a path without a model before it is looked up on the Hub."""
    path = Path(name)
    if not name.strip():
        raise ValueError(f"{subject} is empty; give the name or folder of {wanted}.")
    if path.is_file():
        raise ValueError(f"{subject} is a file; give the name or folder of {wanted}.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = inner_hint(path, "config.json", ADAPTER_CONFIG) or f"give the name or folder of {wanted}."
            raise ValueError(f"{subject} is a folder without `config.json`; {hint}")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"{subject} is a folder that does not exist; give the name or folder of {wanted}.")


def inner_hint(folder: Path, *files: str) -> str:
    """Return a question that names the model in a folder of models, such as the newest checkpoint of a run.

    Args:
        folder: Folder that is no model itself.
        files: Names of files; a folder with one of them is a model.

    Returns:
        The question; empty where no folder in `folder` is a model.
    """
    inner = {found.parent for file in files for found in folder.glob(f"*/{file}")}

    def by_step(path: Path) -> tuple[int, str]:
        step = path.name.removeprefix("checkpoint-")
        return int(step) if step.isdecimal() else -1, path.name

    return f"did you mean '{max(inner, key=by_step)}'?" if inner else ""


def _find_adapter(name: str, init_kwargs: dict[str, Any], option: str) -> PeftConfig | None:
    """Read the configuration of the adapter under `name`; None where there is no adapter."""
    options = hub_options(init_kwargs)
    try:
        found = find_adapter_config_file(name, **options)
    except Exception:  # the search for a model will report any fault of the name
        return None
    if found is None:
        return None
    try:
        return PeftConfig.from_pretrained(name, **options)
    except Exception as error:  # as in `find_config`
        raise ValueError(
            f"`{option}` {name!r} is an adapter whose `{ADAPTER_CONFIG}` cannot be read ({first_line(error)})."
        ) from None


def _reason(error: Exception, wanted: str) -> str:
    """Return the rest of a sentence that begins with the name: the reason why its configuration cannot be read."""
    chain, cause = [error], error.__cause__ or error.__context__
    while isinstance(cause, Exception) and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if any(isinstance(e, GatedRepoError) for e in chain):
        return "is gated on the Hub; ask for access on its page there, and log in (`hf auth login`)."
    if any(isinstance(e, (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError)) for e in chain):
        return (
            "was not found: there is no folder of that name, and neither the Hub nor its cache on this machine gave "
            f"such a model; give the name or folder of {wanted}."
        )
    if "valid JSON" in text:
        return "has a `config.json` that is not valid JSON; save the model again."
    if "Unrecognized model" in text:
        return "has a `config.json` without a `model_type` that transformers knows; save the model again."
    if "does not recognize this architecture" in text:
        kind = text.split("`")[1]
        return f"is of type '{kind}', which transformers {transformers.__version__} does not know; update transformers."
    if "trust_remote_code" in text:
        return "brings code of its own; read that code, and set `trust_remote_code=True` if you trust it."
    return f"has a configuration that cannot be read ({first_line(error)})."
