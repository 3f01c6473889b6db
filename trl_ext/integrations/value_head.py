# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`AutoModelForCausalLMWithValueHead`, which verl and older code import from TRL and which TRL removed in 1.13."""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import PushToHubMixin, find_adapter_config_file

from trl_ext.actor_critic.names import hub_options

_HEAD_KEY = re.compile(r"(?:^|\.)v_head\.(?:summary\.)?(weight|bias)$")
_WRAPPER_PREFIX = "pretrained_model."  # before the model's own names where the whole wrapper was saved
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "value_head.bin")


class ValueHead(nn.Module):
    """Dropout and a linear layer, with TRL's names.

    Args:
        hidden_size: Size D of the hidden states.
        dropout: Probability of dropout on the hidden states, in training mode.
    """

    def __init__(self, hidden_size: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the values, shape (..., 1), of hidden states (..., D), in the precision of the weights."""
        return self.summary(self.dropout(hidden_states).to(self.summary.weight.dtype))


class AutoModelForCausalLMWithValueHead(nn.Module, PushToHubMixin):
    """A causal LM with a value head beside its language-model head, a drop-in for TRL's class of this name.

    Checkpoints are compatible with TRL <= 1.12 in both directions. All other attributes (`config`, `device`,
    `gradient_checkpointing_enable`, ...) are those of the language model. For code that imports the class from TRL:

    ```python
    import trl
    from trl_ext.integrations import AutoModelForCausalLMWithValueHead

    trl.AutoModelForCausalLMWithValueHead = AutoModelForCausalLMWithValueHead  # before verl is imported
    ```

    Args:
        pretrained_model: Causal LM, with or without PEFT adapters.
        summary_dropout_prob: Dropout before the value head, unless the model's configuration has a
            `summary_dropout_prob`.
        v_head_init_strategy: `"normal"` draws the head's weights from N(0, `v_head_initializer_range`^2) and zeroes its
            bias; None leaves PyTorch's initialisation.
        v_head_initializer_range: Standard deviation for `"normal"`.

    Attributes:
        pretrained_model: The causal LM.
        v_head: The value head, with `summary` (a linear layer) and `dropout`.
        is_peft_model: Whether the causal LM has PEFT adapters.

    Raises:
        ValueError: an unknown `v_head_init_strategy`, or prompt learning, whose virtual tokens have no values.
    """

    def __init__(
        self,
        pretrained_model: PreTrainedModel | PeftModel,
        *,
        summary_dropout_prob: float = 0.1,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
    ):
        super().__init__()
        self.is_peft_model = isinstance(pretrained_model, PeftModel)
        if self.is_peft_model and pretrained_model.active_peft_config.is_prompt_learning:
            raise ValueError("A value head does not go with prompt learning; use LoRA (`peft.LoraConfig`).")
        if v_head_init_strategy not in (None, "normal"):
            raise ValueError(f"`v_head_init_strategy` is {v_head_init_strategy!r}; use 'normal' or None.")
        self.pretrained_model = pretrained_model
        self.is_loaded_in_8bit = getattr(pretrained_model, "is_loaded_in_8bit", False)
        self.is_loaded_in_4bit = getattr(pretrained_model, "is_loaded_in_4bit", False)
        self.is_sequential_parallel = False
        config = pretrained_model.config
        self.v_head = ValueHead(_hidden_size(config), getattr(config, "summary_dropout_prob", summary_dropout_prob))
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.v_head.summary.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.v_head.summary.bias)
        self.v_head.to(pretrained_model.device)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | PreTrainedModel | PeftModel,
        *,
        peft_config: PeftConfig | None = None,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> "AutoModelForCausalLMWithValueHead":
        """Wrap a model, or load a checkpoint with its value head; a checkpoint without one gets a new head.

        Args:
            pretrained_model_name_or_path: Name or folder of a causal LM, of a PEFT adapter, or of a checkpoint of this
                class or TRL's; or the loaded model.
            peft_config: Adapter to add to a model that has none.
            is_trainable: Whether a PEFT adapter that is loaded can be trained.
            kwargs: Of the constructor, and of the model's own `from_pretrained` (`dtype`, `quantization_config`, ...).

        Raises:
            ValueError: The value head is in a pickle, has a layout of its own, or the arguments contradict each other.
        """
        names = ("summary_dropout_prob", "v_head_init_strategy", "v_head_initializer_range")
        head_kwargs = {name: kwargs.pop(name) for name in names if name in kwargs}
        model = pretrained_model_name_or_path
        head: dict[str, Tensor] = {}
        if isinstance(model, str | os.PathLike):
            name, hub = os.fspath(model), hub_options(kwargs)
            head, wrapped = _read_value_head(name, hub)
            is_adapter = find_adapter_config_file(name, **hub) is not None
            if is_adapter:
                model = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=is_trainable, **kwargs)
            else:
                if wrapped:
                    kwargs["key_mapping"] = {f"^{re.escape(_WRAPPER_PREFIX)}": ""}
                model = AutoModelForCausalLM.from_pretrained(name, **kwargs)
            if not head:
                # A model's own pickle is in the cache by now; only an adapter has none but the value head's.
                _refuse_pickled_head(name, hub | ({} if is_adapter else {"local_files_only": True}))
        elif kwargs:
            raise ValueError(f"{sorted(kwargs)} are for a model given by name; this one is loaded already.")
        if peft_config is not None:
            if isinstance(model, PeftModel):
                raise ValueError("The model has PEFT adapters already; leave `peft_config` out to train them.")
            if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
                model = prepare_model_for_kbit_training(model)
            model = get_peft_model(model, peft_config)
        wrapper = cls(model, **head_kwargs)
        if head:
            zero = torch.zeros_like(wrapper.v_head.summary.bias)  # some layouts have no bias
            wrapper.v_head.summary.load_state_dict({"bias": zero, **head})
        return wrapper

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> tuple:
        """Return logits, loss and values.

        Args:
            input_ids: Token ids, shape (B, L).
            past_key_values: Cache of earlier tokens.
            attention_mask: 1 for real tokens, shape (B, L).
            return_past_key_values: Return the cache as a fourth element.
            kwargs: Further arguments of the language model.

        Returns:
            Logits in float32, shape (B, L, V); the language model's loss, None without `labels`; the value of the state
            after each token, shape (B, L).
        """
        out = self.pretrained_model(
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            **{**kwargs, "output_hidden_states": True},
        )
        values = self.v_head(out.hidden_states[-1].to(self.v_head.summary.weight.device)).squeeze(-1)
        result = (out.logits.float(), out.loss, values)
        return (*result, out.past_key_values) if return_past_key_values else result

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call `generate` of the language model."""
        return self.pretrained_model.generate(*args, **kwargs)

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return the language model's weights under their own names (none with PEFT adapters), and `v_head.*`."""
        state: dict[str, Any] = {} if destination is None else destination
        if not self.is_peft_model:
            self.pretrained_model.state_dict(destination=state, prefix=prefix, keep_vars=keep_vars)
        return self.v_head.state_dict(destination=state, prefix=f"{prefix}v_head.", keep_vars=keep_vars)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save in safetensors, for `from_pretrained` of this class and of TRL <= 1.12.

        The value head is saved among the model's weights; with an adapter, in a `model.safetensors` of its own, which
        TRL reads too.

        Args:
            save_directory: The folder.
            kwargs: Of the model's own `save_pretrained`; `state_dict` replaces this module's.
        """
        state = kwargs.pop("state_dict", None) or self.state_dict()
        if not self.is_peft_model:
            self.pretrained_model.save_pretrained(save_directory, state_dict=state, **kwargs)
            return
        self.pretrained_model.save_pretrained(save_directory, **kwargs)
        head = {key: weight.contiguous() for key, weight in state.items() if key.startswith("v_head.")}
        save_file(head, Path(save_directory) / "model.safetensors")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "pretrained_model":  # not there yet
                raise
            return getattr(self.pretrained_model, name)


def _hidden_size(config: Any) -> int:
    """Return the size of the hidden states before the head, which OPT-350m projects to a smaller size."""
    return getattr(config, "word_embed_proj_dim", None) or config.get_text_config().hidden_size


def _find(name: str, file: str, hub: dict[str, Any]) -> Path | None:
    """Return the path of a file in a folder or in a repository on the Hub; None if there is no such file."""
    if os.path.isdir(name):
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file, **hub))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None  # the model's own `from_pretrained` reports faults of the name


def _read_value_head(name: str, hub: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """Read `weight` and any `bias` of a checkpoint's value head, and whether the file holds a whole wrapper."""
    index = _find(name, "model.safetensors.index.json", hub)
    if index is not None:
        files = {file for key, file in json.loads(index.read_text())["weight_map"].items() if "v_head." in key}
    else:
        files = {"value_head.safetensors", "model.safetensors"}
    head, wrapped = {}, False
    for file in sorted(files):
        path = _find(name, file, hub)
        if path is None:
            continue
        with safe_open(path, "pt") as tensors:
            keys = list(tensors.keys())
            wrapped |= any(key.startswith(_WRAPPER_PREFIX) for key in keys)
            for key in (key for key in keys if "v_head." in key):
                match = _HEAD_KEY.search(key)
                if match is None:
                    raise ValueError(
                        f"{name} has a value head of another make ({key}); this class reads one linear layer, "
                        "`v_head.summary` or `v_head`."
                    )
                head[match[1]] = tensors.get_tensor(key)
    return head, wrapped


def _refuse_pickled_head(name: str, hub: dict[str, Any]) -> None:
    """Refuse a checkpoint whose value head is only in a pickle, found without unpickling."""
    for file in _PICKLED:
        path = _find(name, file, hub)
        if path is None:
            continue
        names = path.read_bytes() if file.endswith(".json") else _names_in_pickle(path)
        if b"v_head." in names:
            raise ValueError(
                f"The value head of {name} is in {file}, a pickle, which can run code and is not opened here; convert "
                "it once: `state = torch.load('pytorch_model.bin', weights_only=True)`, then "
                "`safetensors.torch.save_file({k: v.clone() for k, v in state.items() if 'v_head.' in k}, "
                "'value_head.safetensors')` in that folder."
            )


def _names_in_pickle(path: Path) -> bytes:
    """Return the part of a PyTorch checkpoint with the names of its tensors."""
    if not zipfile.is_zipfile(path):  # PyTorch before 1.6: one pickle
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(entry) for entry in archive.namelist() if entry.endswith("data.pkl"))
