"""Text that an exported model writes, by transformers' own loading, sampling and chat template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from training.model.special_ids import turn_end


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; of temperature 0, the likeliest."""

    temperature: float
    max_new_tokens: int

    @property
    def options(self) -> dict[str, Any]:
        """As `generate` takes them."""
        most = {"max_new_tokens": self.max_new_tokens}
        if self.temperature:
            return {"do_sample": True, "temperature": self.temperature, "top_k": 20, **most}
        # a base's own values of what only sampling has would be warned of
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, **most}


@dataclass(frozen=True)
class ExportedModel:
    """A Hugging Face folder, loaded."""

    folder: Path
    model: Any  # transformers' own types do not know that every such model generates
    tokenizer: Any
    sampling: Sampling

    @classmethod
    def load(cls, folder: Path, sampling: Sampling) -> ExportedModel:
        """On a GPU where there is one."""
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(folder, model, tokenizer, sampling)

    def complete(self, prompt: str) -> str:
        """What the model adds to `prompt`, up to the end of the line."""
        return self._write(self._encode(prompt)).partition("\n")[0]

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
            answer = self._write(self._encode(text), streamer=shown)
            talk.append({"role": "assistant", "content": answer})

    def _encode(self, text: str) -> Any:
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = ids["input_ids"].shape[1]
        if room is not None and length + self.sampling.max_new_tokens > room:
            raise ValueError(
                f"{length} tokens so far and --max-new-tokens {self.sampling.max_new_tokens}: the "
                f"model was made for {room} together"
            )
        return ids.to(self.model.device)

    def _write(self, ids: Any, *, streamer: Any = None) -> str:
        generated = self.model.generate(
            **ids,
            **self.sampling.options,
            eos_token_id=self._ends(),
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=streamer,
        )
        new_ids = generated[0, ids["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new_ids, skip_special_tokens=True))

    def _ends(self) -> list[int] | None:
        """What the export says, and the end of a turn, which other exporters may not name."""
        own = self.model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [] if own is None else [own]
        of_turn = turn_end(self.tokenizer)
        return sorted({*ends, *([] if of_turn is None else [of_turn])}) or None
