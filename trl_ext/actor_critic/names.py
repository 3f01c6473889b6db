# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models by name: what is behind a name, found out before anything heavy is loaded."""

import importlib.util
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

ADAPTER_CONFIG = "adapter_config.json"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class PolicySource(NamedTuple):
    """Where a policy given by name comes from.

    Attributes:
        base: Name or folder of the causal LM.
        config: Its configuration.
        adapter: Configuration of the LoRA adapter that the name stands for; None for a whole model.
    """

    base: str
    config: PretrainedConfig
    adapter: PeftConfig | None


def hub_options(init_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `from_pretrained` that say where files come from."""
    return {name: init_kwargs[name] for name in _HUB_OPTIONS if name in init_kwargs}


def find_policy(name: str, init_kwargs: dict[str, Any]) -> PolicySource:
    """The causal LM, or the LoRA adapter with its base, that `name` stands for.

    Args:
        name: Name on the Hub or folder of a causal LM, or of a LoRA adapter such as TRL's `SFTTrainer` saves.
        init_kwargs: Keyword arguments of `from_pretrained`.

    Raises:
        ValueError: when there is nothing, or something that generates no text.
    """
    subject, adapter = f"`model` {name!r}", _find_adapter(name, init_kwargs, "model")
    if adapter is None:
        config = find_config(name, init_kwargs, subject, "a causal language model or of a LoRA adapter")
        check_generates(config, subject)
        return PolicySource(name, config, None)
    base = adapter.base_model_name_or_path
    task = getattr(adapter.task_type, "value", adapter.task_type)
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{subject} is an adapter for the task {task}, not for a causal language model (CAUSAL_LM); a reward "
            "adapter belongs in `reward_adapters`."
        )
    where = f"`base_model_name_or_path` of its `{ADAPTER_CONFIG}`"
    if not base:
        raise ValueError(f"{subject} is an adapter that does not name its base; write the base's folder into {where}.")
    subject = f"The base {base!r} of the adapter {name!r}"
    options = {key: value for key, value in init_kwargs.items() if key != "revision"}  # the adapter's, not the base's
    if _find_adapter(base, options, "model") is not None:
        raise ValueError(
            f"{subject} is an adapter itself; merge it into its own base first "
            "(`python -m trl_ext.actor_critic.merge`)."
        )
    config = find_config(base, options, subject, f"a causal language model in {where}")
    check_generates(config, subject)
    return PolicySource(base, config, adapter)


def find_critic(name: str, init_kwargs: dict[str, Any]) -> PretrainedConfig:
    """Configuration of a separate critic given by name.

    Raises:
        ValueError: when there is no such mode and no such model, or an adapter.
    """
    if _find_adapter(name, init_kwargs, "critic") is not None:
        raise ValueError(
            f"`critic` {name!r} is an adapter, and a critic by name is a whole model; merge the adapter into its base "
            "first, or use `critic='adapter'`, which trains a new one."
        )
    modes = ", ".join(f"'{mode}'" for mode in CRITIC_MODES)
    return find_config(name, init_kwargs, f"`critic` {name!r}", f"a model, or one of {modes}")


def find_config(name: str, init_kwargs: dict[str, Any], subject: str, wanted: str) -> PretrainedConfig:
    """Configuration of a model by name.

    Args:
        name: Name on the Hub, or folder.
        init_kwargs: Keyword arguments of `from_pretrained`; those that say where files come from are used.
        subject: Beginning of a message: the option and the name, as the user gave them.
        wanted: Of what it may be the name, for messages.

    Raises:
        ValueError: in one sentence, when there is none or it cannot be read.
    """
    _check_place(name, subject, wanted)
    options = hub_options(init_kwargs)
    if "subfolder" in init_kwargs:
        options["subfolder"] = init_kwargs["subfolder"]
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=bool(init_kwargs.get("trust_remote_code")), **options)
    except Exception as error:  # transformers raises much, from a misspelt name to a validator's own class
        raise ValueError(f"{subject} {_reason(error, wanted)}") from None


def check_generates(config: PretrainedConfig, subject: str) -> None:
    """Check by its configuration that a model generates text.

    Raises:
        ValueError: when it does not.
    """
    known, names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()), config.architectures or []
    if getattr(config, "auto_map", None):
        return  # code of its own brings architectures that transformers does not know
    fits = known.intersection(names) if names else type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not fits or config.is_encoder_decoder:
        kind = names[0] if names else f"model of type '{config.model_type}'"
        raise ValueError(f"{subject} is a {kind}, not a causal language model; give one that generates text.")


def check_quantization_library(quantization: Any) -> None:
    """Check that a quantized model can be loaded.

    Args:
        quantization: A `BitsAndBytesConfig`, the `quantization_config` of a `config.json`, or None.

    Raises:
        ImportError: when it needs bitsandbytes, which is not installed.
    """
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    if "bitsandbytes" in str(getattr(method, "value", method)) and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("Quantization needs bitsandbytes; install it with `pip install 'trl_ext[quantization]'`.")


def load_tokenizer(name: str, init_kwargs: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a policy; a LoRA adapter without one has its base's.

    Args:
        name: Name or folder of the policy.
        init_kwargs: Keyword arguments of the policy's `from_pretrained`.

    Raises:
        ValueError: when there is none.
    """
    options, trust = hub_options(init_kwargs), bool(init_kwargs.get("trust_remote_code"))
    names = [name]
    adapter = _find_adapter(name, options, "model")
    if adapter is not None and adapter.base_model_name_or_path:
        names = [name] * _has_tokenizer(name) + [adapter.base_model_name_or_path]
    problem = ""
    for source in names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust, **options)
        except Exception as error:  # as in `find_config`
            problem = problem or f" ({first_sentence(error)})"
            continue
        # Without files, transformers makes some tokenizers of nothing but special tokens.
        if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            return tokenizer
    if not _has_tokenizer(names[-1]):
        problem = ""
    raise ValueError(
        f"`model` {name!r} has no tokenizer that can be loaded{problem}; give `processing_class`, or save one there "
        "(`tokenizer.save_pretrained`)."
    )


def _has_tokenizer(name: str) -> bool:
    """Whether a folder holds a tokenizer's files; assumed of a name on the Hub."""
    return not Path(name).is_dir() or any(Path(name).glob("token*")) or any(Path(name).glob("*.model"))


def _check_place(name: str, subject: str, wanted: str) -> None:
    """Refuse a path that leads nowhere, before it is looked up on the Hub."""
    path = Path(name)
    if not name.strip():
        raise ValueError(f"{subject} is empty; give the name or folder of {wanted}.")
    if path.is_file():
        raise ValueError(f"{subject} is a file; give the name or folder of {wanted}.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            inner = sorted({p.parent for file in ("config.json", ADAPTER_CONFIG) for p in path.glob(f"*/{file}")})
            hint = f"did you mean '{inner[-1]}'?" if inner else f"give the name or folder of {wanted}."
            raise ValueError(f"{subject} is a folder without `config.json`; {hint}")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"{subject} is a folder that does not exist; give the name or folder of {wanted}.")


def _find_adapter(name: str, init_kwargs: dict[str, Any], option: str) -> PeftConfig | None:
    """Configuration of the adapter that `name` stands for; None where there is none."""
    options = hub_options(init_kwargs)
    try:
        found = find_adapter_config_file(name, **options)
    except Exception:  # whatever is wrong with the name, the search for a model says it
        return None
    if found is None:
        return None
    try:
        return PeftConfig.from_pretrained(name, **options)
    except Exception as error:  # as in `find_config`
        raise ValueError(
            f"`{option}` {name!r} is an adapter whose `{ADAPTER_CONFIG}` cannot be read ({first_sentence(error)})."
        ) from None


def _reason(error: Exception, wanted: str) -> str:
    """What is wrong with a name, in the rest of a sentence."""
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
    return f"has a configuration that cannot be read ({first_sentence(error)})."


def first_sentence(error: Exception) -> str:
    """The beginning of somebody else's message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines).removesuffix(".") if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
