"""Conversations to ids and an assistant mask, by the tokenizer's own chat template."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

# Not AutoTokenizer, which would load torch; this one reads tokenizer.json as it is.
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.tokenizing.chat_content import (
    ASSISTANT,
    Messages,
    check_nothing_left_out,
    check_says_something,
    strings_of,
)
from data_prep.tokenizing.round_trip import HuggingFaceRoundTrip
from data_prep.tokenizing.settings import HF_NAME

Span = tuple[int, int]  # of characters

# Others count if the template names them. A template may build '<|' + role + '|>', and a role
# called "end" would then end a turn.
_ROLES = ("system", "developer", "user", ASSISTANT, "tool", "function")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON may hold one; no tokenizer accepts it
_MARKS_TARGETS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Llama 3's templates print today's date unless they are given one; this is their fallback.
_DATE = "26 Jul 2024"


class ChatEncoder:
    """Encodes with a tokenizer folder's chat template; same ids as `apply_chat_template`.

    Targets are what the template puts between {% generation %} marks. Without marks they are
    found by rendering: what follows the prompt, up to and including the token that ends the turn.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _load(folder)
        self._template = _template(self._tokenizer, folder=folder)
        self._has_marks = bool(_MARKS_TARGETS.search(self._template))
        self._constants = dict(self._tokenizer.special_tokens_map)
        if "strftime_now" in self._template:
            if "date_string" not in self._template:
                raise ValueError(
                    f"{folder}: its chat template prints today's date, and a corpus must not "
                    "depend on the day; replace strftime_now(...) by a date"
                )
            self._constants["date_string"] = _DATE
        self._backend = _exact_backend(self._tokenizer)
        settings = json.loads(self._backend.to_str())
        self.round_trip = HuggingFaceRoundTrip(self._backend, settings=settings)
        names = self._control_tokens()
        longest_first = sorted(names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # <|im_end|> and a newline, say, or <|end|> and <|endoftext|>: the first ends the turn.
        self._turn_end = re.compile(rf"({self._control.pattern})(?:\s|{self._control.pattern})*\Z")
        self._takes_parts = self._shows_parts()

    def encode(self, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
        """Ids [T] uint32 and mask [T] uint8, 1 where the assistant speaks or ends its turn.

        Raises:
            ValueError: what is wrong with this conversation.
        """
        return self.encode_with_text(messages)[:2]

    def encode_with_text(self, messages: Messages) -> tuple[np.ndarray, np.ndarray, str]:
        """As `encode`, and the text of the template that the ids encode.

        Raises:
            ValueError: what is wrong with this conversation.
        """
        self._check(messages)
        text, spans = self._render(messages)
        check_nothing_left_out(messages, rendered=text)
        if self._has_marks:
            self._check_marks(text, spans=spans)
        else:
            spans = [self._span_of_turn(messages, i, text=text) for i in _turns(messages)]
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.uint32)
        offsets_T2 = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        mask = _mask(offsets_T2, spans=spans, text=text, with_partial=self._has_marks)
        if not mask.any():
            raise ValueError("the chat template leaves no assistant token to train on")
        return ids, mask, text

    def _check(self, messages: Messages) -> None:
        roles = [message.get("role") for message in messages]
        if ASSISTANT not in roles:
            found = ", ".join(dict.fromkeys(map(str, roles))) or "none"
            raise ValueError(f"no message has the role {ASSISTANT!r}; roles: {found}")
        for number, message in enumerate(messages):
            role, content = roles[number], message.get("content")
            quoted = (f"'{role}'", f'"{role}"')
            if role not in _ROLES and not any(name in self._template for name in quoted):
                raise ValueError(f"message {number}: the chat template has no role {role!r}")
            if isinstance(content, list):
                content = self._joined_parts(content, number=number)
            if content is not None and not isinstance(content, str):
                kind = type(content).__name__
                raise ValueError(f"message {number}: content must be text, found {kind}")
            for text in (content or "", *strings_of(message)):
                if _LONE_SURROGATE.search(text):
                    raise ValueError(f"message {number}: contains a lone surrogate")
                if found_token := self._control.search(text) or self._normalised_control(text):
                    raise ValueError(
                        f"message {number}: contains the control token {found_token[0]!r}, which "
                        "only the chat template may write"
                    )
            check_says_something(message, number=number)

    def _joined_parts(self, parts: list[Any], *, number: int) -> str:
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in parts
        ]
        if not self._takes_parts or not all(isinstance(text, str) for text in texts):
            takes = "accepts only text parts" if self._takes_parts else "accepts no list of parts"
            raise ValueError(f"message {number}: content is a list; the chat template {takes}")
        return "".join(map(str, texts))

    def _normalised_control(self, text: str) -> re.Match[str] | None:
        """Some tokens match after normalisation, which may turn wide letters into <eos>."""
        normalizer = self._backend.normalizer
        return self._control.search(normalizer.normalize_str(text)) if normalizer else None

    def _render(
        self, messages: Messages, *, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The template's text, and the characters between its {% generation %} marks."""
        # As `apply_chat_template` does: templates print a null, but handle a missing key.
        present = [{k: v for k, v in turn.items() if v is not None} for turn in messages]
        options: dict[str, Any] = {
            **self._constants,
            "chat_template": self._template,
            "return_assistant_tokens_mask": self._has_marks,
            "add_generation_prompt": add_generation_prompt,
        }
        result: Any  # a pair, whatever its annotation says
        try:
            result = render_jinja_template(conversations=[present], **options)
        except Exception as error:  # templates raise all kinds of errors
            raise ValueError(f"the chat template rejects it: {_first_line(error)}") from None
        (text,), spans = result
        return text, spans[0] if self._has_marks else []

    def _span_of_turn(self, messages: Messages, number: int, *, text: str) -> Span:
        """What the assistant adds to its prompt in message `number`, up to the end of its turn."""
        prompt, _ = self._render(messages[:number], add_generation_prompt=True)
        turn, _ = self._render(messages[: number + 1])
        _must_begin(text, prompt, what=f"the prompt of message {number}")
        _must_begin(turn, prompt, what=f"the prompt of message {number}")
        if "add_generation_prompt" not in self._template:
            self._check_no_header(turn[len(prompt) :], message=messages[number], number=number)
        found = self._turn_end.search(turn, len(prompt))
        if found is None:
            raise ValueError(
                f"message {number}: the chat template ends the turn without a special token, so "
                "the model would not learn to stop; add eos_token after the content"
            )
        end = found.end(1)
        _must_begin(text, turn[:end], what=f"the answer in message {number}")
        return len(prompt), end

    def _check_no_header(self, answer: str, *, message: dict[str, Any], number: int) -> None:
        content = message.get("content")
        if not isinstance(content, str) or not answer.lstrip().startswith(content.strip()):
            raise ValueError(
                f"message {number}: the chat template ignores add_generation_prompt, so its header "
                "cannot be told apart from the answer; support it, or add {% generation %} marks"
            )

    def _check_marks(self, text: str, *, spans: list[Span]) -> None:
        after = re.compile(rf"\s*({self._control.pattern})")
        for start, end in spans:
            found = after.match(text, end)
            in_loss = found and any(s <= found.start(1) < e for s, e in spans)
            if found and not in_loss and not self._turn_end.search(text[:end], start):
                raise ValueError(
                    f"the chat template ends {{% generation %}} before {found[1]!r}, so the "
                    "model would not learn to stop; move {% endgeneration %} after it"
                )

    def _control_tokens(self) -> set[str]:
        """Special tokens, and whatever added tokens the template puts around a plain message."""
        user = {"role": "user", "content": "x"}
        frame = ""
        # some templates demand a system message, others an answer
        for messages in (
            [user],
            [{**user, "role": "system"}, user],
            [user, {**user, "role": ASSISTANT}],
        ):
            with suppress(ValueError):
                frame += self._render(messages)[0]
        tokens = self._tokenizer.added_tokens_decoder.values()
        names = {t.content for t in tokens if t.special or t.content in frame}
        return {name for name in names if name.strip()}  # Gemma counts runs of newlines as tokens

    def _shows_parts(self) -> bool:
        """Whether the template takes [{"type": "text", ...}]; many print the Python list."""
        parts = [{"type": "text", "text": "x"}]
        try:
            as_parts, _ = self._render([{"role": "user", "content": parts}])
            as_text, _ = self._render([{"role": "user", "content": "x"}])
        except ValueError:
            return False
        return as_parts == as_text


def _load(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / HF_NAME).is_file():
        raise ValueError(
            f"{folder}: conversations need a {HF_NAME}; convert the tokenizer with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises all kinds of errors
        raise ValueError(f"{folder}: not a tokenizer: {_first_line(error)}") from None


def _template(tokenizer: PreTrainedTokenizerFast, *, folder: Path) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"{folder}: has no chat template; use the tokenizer of an instruction-tuned model, "
            "or put a chat_template.jinja into the folder"
        )
    try:
        template = tokenizer.get_chat_template()
        render_jinja_template(conversations=[], chat_template=template)  # compiles it
    except Exception as error:  # the library raises all kinds of errors
        raise ValueError(f"{folder}: chat template: {_first_line(error)}") from None
    return template


def _exact_backend(tokenizer: PreTrainedTokenizerFast) -> tokenizers.Tokenizer:
    """A tokenizer with the same ids, whose offsets cover every character."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None  # else the same conversation has other ids each time
    # It only adds special tokens, which the template already writes, and trims spaces off offsets.
    backend.post_processor = None
    return backend


def _mask(
    offsets_T2: np.ndarray, *, spans: list[Span], text: str, with_partial: bool
) -> np.ndarray:
    """1 for tokens within a span and, `with_partial` (as in transformers), partly within.

    A header's blank may be in one token with the answer's first word (" yes" behind "assistant:
    "): the model has to learn it.
    """
    begin, end = offsets_T2.T
    mask = np.zeros(len(offsets_T2), dtype=np.uint8)
    for first, last in spans:
        if with_partial:
            mask |= (begin < last) & (end > first)
        else:
            joins_blank = (begin >= len(text[:first].rstrip())) & (end > first)
            mask |= ((begin >= first) | joins_blank) & (begin < last) & (end <= last)
    return mask


def _must_begin(text: str, beginning: str, *, what: str) -> None:
    if not text.startswith(beginning):
        pairs = enumerate(zip(text, beginning, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(text), len(beginning)))
        raise ValueError(
            f"the chat template renders {what} differently once the conversation continues: "
            f"{beginning[place : place + 30]!r} became {text[place : place + 30]!r}, so "
            "training would not match generation; make one document per answer, each ending with "
            "its answer, or use a chat_template.jinja with {% generation %} marks"
        )


def _turns(messages: Messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message.get("role") == ASSISTANT]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
