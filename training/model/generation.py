"""Text that an exported model writes, by transformers' own loading, sampling and chat template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from training.model.adapter import require_peft
from training.model.special_ids import turn_end


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; of temperature 0, the likeliest."""

    temperature: float
    max_new_tokens: int
    may_be_fewer: bool = False  # where the model's context leaves no room for so many

    def options(self, *, room: int | None) -> dict[str, Any]:
        """As `generate` takes them.

        Args:
            room: how many tokens the model's context leaves; None for one without a limit.
        """
        num_new = self.max_new_tokens if room is None else min(self.max_new_tokens, room)
        most = {"max_new_tokens": num_new}
        if self.temperature:
            return {"do_sample": True, "temperature": self.temperature, "top_k": 20, **most}
        # a base's own values of what only sampling has would be warned of
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, **most}


def _base_of_adapter(folder: Path) -> str | None:
    """What has its tokenizer; None for a whole model."""
    if (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file():
        return None
    require_peft()
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(folder)).base_model_name_or_path


@dataclass(frozen=True)
class ExportedModel:
    """A Hugging Face folder, loaded."""

    folder: Path
    model: Any  # transformers' own types do not know that every such model generates
    tokenizer: Any
    sampling: Sampling

    @classmethod
    def load(cls, folder: Path, sampling: Sampling) -> ExportedModel:
        """On a GPU where there is one.

        Raises:
            ValueError: for a folder without some weights, which transformers would draw at random;
                for an adapter where there is no peft.
        """
        tokens_of = _base_of_adapter(folder) or folder
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else a traceback; refused below
        )
        model, weights = found
        _refuse_incomplete(folder, weights)
        tokenizer = AutoTokenizer.from_pretrained(tokens_of, trust_remote_code=False)
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(folder, model, tokenizer, sampling)

    def complete(self, prompt: str) -> str:
        """What the model adds to `prompt`, up to the end of the line."""
        return self._write(self._encode_prompt(prompt)).partition("\n")[0]

    def chat(self, lines: Iterable[str], *, system: str | None) -> None:
        """Print an answer to each line as it is written; what was said before is kept.

        Raises:
            ValueError: for a tokenizer without a chat template, or a talk longer than the model's
                context.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.folder}: its tokenizer has no chat template, so it completes texts only: "
                "leave --chat out, or put the chat_template.jinja that it was trained with into it"
            )
        talk = [{"role": "system", "content": system}] if system else []
        shown = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        for line in lines:
            talk.append({"role": "user", "content": line})
            text = self.tokenizer.apply_chat_template(
                talk, tokenize=False, add_generation_prompt=True
            )
            encoded = self.tokenizer(text, add_special_tokens=False)  # the template has them
            answer = self._write(encoded["input_ids"], streamer=shown)
            talk.append({"role": "assistant", "content": answer})

    def _encode_prompt(self, text: str) -> list[int]:
        """As a document of the training begins: behind the BOS of a tokenizer that adds one."""
        plain = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        full = self.tokenizer(text)["input_ids"]
        for start in range(len(full) - len(plain) + 1):
            end = start + len(plain)
            if full[start:end] == plain:
                return list(full[:end])  # an EOS behind it would end the text before it is written
        return list(plain)

    def _room(self, length: int) -> int | None:
        """How many tokens may follow so many; None for a model without a limit."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is None:
            return None
        least = 1 if self.sampling.may_be_fewer else self.sampling.max_new_tokens
        if length + least > context:
            raise ValueError(
                f"{length} tokens so far and --max-new-tokens {least}: the "
                f"model was made for {context} together"
            )
        return int(context) - length

    def _write(self, prompt: list[int], *, streamer: Any = None) -> str:
        if not prompt:
            raise ValueError("the tokenizer makes no token of this text, so nothing can follow it")
        ids = torch.tensor([prompt], device=self.model.device)
        generated = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **self.sampling.options(room=self._room(len(prompt))),
            eos_token_id=self._ends(),
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=streamer,
        )
        new_ids = generated[0, len(prompt) :]
        return str(self.tokenizer.decode(new_ids, skip_special_tokens=True))

    def _ends(self) -> list[int] | None:
        """What the export says, and the end of a turn, which other exporters may not name."""
        own = self.model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [] if own is None else [own]
        of_turn = turn_end(self.tokenizer)
        return sorted({*ends, *([] if of_turn is None else [of_turn])}) or None


def _refuse_incomplete(folder: Path, weights: dict[str, Any]) -> None:
    """By what transformers says of its loading; weights that it ties itself are not missing."""
    other_shape = [name for name, *_ in weights["mismatched_keys"]]
    for names, what in (
        (sorted(weights["missing_keys"]), "are missing"),
        (sorted(other_shape), "have another shape than its configuration says"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise ValueError(
                f"{folder}: weights {what}: {names[0]}{more}; is it incomplete? Write it again"
            )
