"""Apply a model's generation_config.json: each field is honoured or refused by name."""

from __future__ import annotations

import copy
import logging
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends.language.tokenizer import Texts
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

    from mpiserve.config import ServiceConfig

logger = logging.getLogger("mpiserve")

# Fields that change the tokens and are not supported, with their neutral values.
REFUSED: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "guidance_scale": 1.0,
    "token_healing": False,
    "constraints": [],
    "force_words_ids": [],
    "dola_layers": "",
    "max_time": 0.0,  # requests have deadlines
}
# Requests set the sampling: temperature, top_k, top_p and seed are inputs.
DRAWS = ("do_sample", "temperature", "top_k", "top_p")
MORE_DRAWS = dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), 0.0)
MORE_DRAWS["typical_p"] = 1.0
LENGTHS = ("max_length", "max_new_tokens")


class Rules:
    """The rules of one sequence, in addition to its end tokens.

    Args:
        processors: Processors of transformers that change the logits.
        criteria: Criteria of transformers that end the sequence.
    """

    def __init__(self, processors: Any, criteria: list[Any]) -> None:
        self._processors = processors
        self._criteria = criteria

    def scores(self, context: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Return the changed logits of the next token."""
        import torch

        ids = torch.tensor([context], device=logits.device)
        scores: torch.Tensor = self._processors(ids, logits[None])[0]
        return scores

    def end(self, context: list[int]) -> bool:
        """Return whether the sequence ends with its last token."""
        import torch

        ids = torch.tensor([context])
        return any(bool(criterion(ids, None)[0]) for criterion in self._criteria)


class Settings:
    """The generation settings of a model and of its service.

    Args:
        service: The service; its options `generation`, `stop_tokens` and `pad_token` override
            the model's settings.
        model: The model, with the generation_config.json of its directory, if there is one.
        draws: Whether requests may have a temperature.

    Raises:
        ModelError: If a field is not supported.
        ArgumentError: If an option is wrong.
    """

    def __init__(self, service: ServiceConfig, model: Any, draws: bool) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._path = service.folder / str(service.model)
        self._config = self._overridden(service)
        self._refuse(service, draws)
        options, text = service.options, model.config.get_text_config()
        stops = options.get("stop_tokens", _first(self._config, text, "eos_token_id"))
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        self.stops = frozenset(stops)
        pad = options.get("pad_token", _first(self._config, text, "pad_token_id"))
        self.pad: int = (stops[0] if stops else 0) if pad is None else pad
        self._config.eos_token_id = stops or None
        self._config.do_sample = False
        self._criteria = self._stop_strings()
        self._has_rules = self._criteria or self._processors([0], 1)

    def rules(self, prompt: list[int], limit: int) -> Rules | None:
        """Make the rules of one sequence, if there are any."""
        if not self._has_rules:
            return None
        return Rules(self._processors(prompt, limit), self._criteria)

    def _overridden(self, service: ServiceConfig) -> Any:
        """Return the model's settings, overridden by the option `generation`."""
        key, config = f"service.{service.name}.options.generation", self._model.generation_config
        config, table = copy.deepcopy(config), service.options.get("generation", {})
        if not isinstance(table, dict):
            text = f"{key}: must be a table of fields of generation_config.json"
            raise ArgumentError(Code.EARG, text)
        for field in table:
            if not hasattr(config, field) or field.startswith("_"):
                near = get_close_matches(field, vars(config), 1)
                hint = f" (did you mean '{near[0]}'?)" if near else ""
                text = f"{key}.{field}: generation_config.json has no such field{hint}"
                raise ArgumentError(Code.EARG, text)
        try:
            config.update(**table)
        except (ValueError, TypeError) as error:
            raise ArgumentError(Code.EARG, f"{key}: {error}") from None
        return config

    def _refuse(self, service: ServiceConfig, draws: bool) -> None:
        for name, neutral in (REFUSED | (MORE_DRAWS if draws else {})).items():
            value = getattr(self._config, name, None)
            if value and value != neutral:
                self._no(service, name, value, neutral)
        if getattr(self._config, "cache_implementation", None) == "quantized":
            self._no(service, "cache_implementation", "quantized", "dynamic")
        others = (*DRAWS, *LENGTHS, *(() if draws else MORE_DRAWS))
        said = {name: getattr(self._config, name, None) for name in others}
        left = [f"{name} = {value}" for name, value in said.items() if value is not None]
        if left:
            what, name = ", ".join(left), service.name
            logger.info(
                "service %s: requests set these, not generation_config.json: %s", name, what
            )

    def _no(self, service: ServiceConfig, name: str, value: Any, neutral: Any) -> None:
        text = (
            f"generation_config.json has {name} = {value!r}, which task 'generate' does not "
            f"support: remove it, or set service.{service.name}.options.generation.{name} = "
            f"{neutral!r}"
        )
        raise ModelError(Code.EMODEL, text)

    def _processors(self, prompt: list[int], limit: int) -> Any:
        """Make transformers' processors of logits, as `generate()` does for one prompt."""
        import torch

        config = copy.copy(self._config)
        config.max_length = len(prompt) + limit
        if config.min_new_tokens is not None:
            config.min_length = len(prompt) + config.min_new_tokens
        stops = config.eos_token_id
        config._eos_token_tensor = stops and torch.tensor(stops, device=self._device)
        ids = torch.tensor([prompt], device=self._device)
        return self._model._get_logits_processor(
            config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=ids,
            device=self._device,
            model_kwargs={"attention_mask": torch.ones_like(ids)},
        )

    def _stop_strings(self) -> list[Any]:
        strings = self._config.stop_strings
        if not strings:
            return []
        from transformers.generation import StopStringCriteria

        tokenizer = Texts(Path(self._path), 1, cuts=False).tokenizer
        return [StopStringCriteria(tokenizer=tokenizer, stop_strings=strings)]


def _first(config: Any, text: Any, name: str) -> Any:
    value = getattr(config, name, None)
    return getattr(text, name, None) if value is None else value
