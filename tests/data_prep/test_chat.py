"""Conversations have the ids of transformers, and only what the assistant says is learnt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.tokenizing.chat import ChatEncoder
from tests.data_prep.chat_templates import (
    CHATML,
    LLAMA,
    MARKED,
    PHI,
    QWEN,
    TALK,
    MakeFolder,
    Messages,
)


def _theirs(folder: Path, messages: Messages, **options: Any) -> dict[str, list[int]]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, **options)


def _learnt(folder: Path, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """The runs of targets, as text."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    runs = np.split(ids, np.flatnonzero(np.diff(mask)) + 1)
    first = 0 if mask[0] else 1
    return [backend.decode(run.tolist(), skip_special_tokens=False) for run in runs[first::2]]


@pytest.mark.parametrize(
    ("template", "options", "learnt"),
    [
        # The tokenizer joined the answer's first line break to the header's: both are learnt.
        (CHATML, {}, ["low 日本 👩‍👩‍👧‍👦<|im_end|>", "\n\n\nhigh\n\n  <|im_end|>"]),
        (LLAMA, {"date_string": "26 Jul 2024"}, ["low 日本 👩‍👩‍👧‍👦<|eot_id|>", "high<|eot_id|>"]),
    ],
    ids=["chatml", "llama"],
)
@pytest.mark.parametrize("in_settings", [True, False])
def test_ids_are_those_of_transformers_and_answers_alone_are_learnt(
    make_folder: MakeFolder,
    template: str,
    options: dict[str, Any],
    learnt: list[str],
    in_settings: bool,
) -> None:
    folder = make_folder(template, in_settings=in_settings)
    ids, mask = ChatEncoder(folder).encode(TALK)
    assert ids.dtype == np.uint32 and mask.dtype == np.uint8
    assert ids.tolist() == _theirs(folder, TALK, **options)["input_ids"]
    assert _learnt(folder, ids, mask) == learnt


_WORDS = st.lists(
    st.sampled_from(["the", " low", "\n", "\n\n", "  ", "\t", "日本", "é", "<think>", "1", "."]),
    max_size=6,
).map("".join)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=st.lists(_WORDS, min_size=2, max_size=6), data=st.data())
def test_each_token_is_learnt_if_and_only_if_it_lies_within_an_answer_but_for_blanks_before_it(
    chatml: ChatEncoder, contents: list[str], data: st.DataObject
) -> None:
    roles = data.draw(
        st.lists(
            st.sampled_from(["user", "assistant", "tool"]),
            min_size=len(contents),
            max_size=len(contents),
        )
    )
    roles[-1] = "assistant"
    contents = [text if text.strip() else f"the{text}" for text in contents]  # else refused
    pieces, is_answer = [], []
    for role, content in zip(roles, contents, strict=True):
        header, body = f"<|im_start|>{role}\n", f"{content}<|im_end|>"
        pieces.append(header + body + "\n")
        is_answer += [False] * len(header) + [role == "assistant"] * len(body) + [False]
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    ids, mask = chatml.encode(messages)
    encoding = chatml._backend.encode("".join(pieces), add_special_tokens=False)
    assert ids.tolist() == encoding.ids
    text = "".join(pieces)
    # A header ends in a line break; a token may join it to the answer.
    may_be = [answer or text[i].isspace() for i, answer in enumerate(is_answer)]
    learnt = [
        all(is_answer[a:b]) or (is_answer[b - 1] and all(may_be[a:b])) for a, b in encoding.offsets
    ]
    assert mask.tolist() == learnt


VICUNA = (
    "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_first_word_that_the_tokenizer_joins_to_the_headers_blank_is_learnt(
    make_folder: MakeFolder,
) -> None:
    """As in transformers, where marks in the template say what the assistant speaks."""
    folder = make_folder(VICUNA.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    messages: Messages = [{"role": "assistant", "content": "low"}]
    ids, mask = ChatEncoder(folder).encode(messages)
    theirs = _theirs(make_folder(VICUNA), messages, return_assistant_tokens_mask=True)
    assert ids.tolist() == theirs["input_ids"]
    assert mask.tolist() == theirs["assistant_masks"]
    assert _learnt(folder, ids, mask) == [" low<eos>"]


def test_dropout_of_merges_is_switched_off(make_folder: MakeFolder) -> None:
    """Else the same conversation would get other ids each time."""
    folder = make_folder(CHATML)
    expected = ChatEncoder(folder).encode(TALK)[0].tolist()
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["model"]["dropout"] = 0.5
    path.write_text(json.dumps(saved))
    encoder = ChatEncoder(folder)
    assert all(encoder.encode(TALK)[0].tolist() == expected for _ in range(10))


def test_marks_of_the_template_decide_as_in_transformers(make_folder: MakeFolder) -> None:
    folder = make_folder(MARKED)
    ids, mask = ChatEncoder(folder).encode(TALK)
    theirs = _theirs(folder, TALK, return_assistant_tokens_mask=True)
    assert ids.tolist() == theirs["input_ids"]
    assert mask.tolist() == theirs["assistant_masks"]
    assert _learnt(folder, ids, mask)[0] == "low 日本 👩‍👩‍👧‍👦<|im_end|>"


def test_marks_that_leave_out_the_end_of_the_turn_are_refused(make_folder: MakeFolder) -> None:
    template = MARKED.replace(
        "message.content + '<|im_end|>' }}{%- endgeneration %}",
        "message.content }}{%- endgeneration %}{{- '<|im_end|>' }}",
    )
    with pytest.raises(ValueError, match="the model would not learn to stop"):
        ChatEncoder(make_folder(template)).encode(TALK)


def test_a_template_that_strips_thoughts_gives_what_the_model_says_or_refuses(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(QWEN)
    encoder = ChatEncoder(folder)
    ids, mask = encoder.encode(TALK[:3])
    assert ids.tolist() == _theirs(folder, TALK[:3])["input_ids"]
    learnt = "<think>\n\n</think>\n\nlow 日本 👩‍👩‍👧‍👦<|im_end|>"
    assert _learnt(folder, ids, mask) == [learnt]
    with pytest.raises(ValueError, match="renders the answer in message 2 differently once"):
        encoder.encode(TALK)


def test_calls_of_tools_and_thoughts_are_learnt(make_folder: MakeFolder) -> None:
    folder = make_folder(QWEN)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages: Messages = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two", "reasoning_content": "so"},
    ]
    ids, mask = ChatEncoder(folder).encode(messages)
    assert ids.tolist() == _theirs(folder, messages)["input_ids"]
    first, second = _learnt(folder, ids, mask)
    assert first.startswith('<think>\nhm\n</think>\n\n\n<tool_call>\n{"name": "add"')
    assert first.endswith("</tool_call><|im_end|>")
    assert second == "<think>\nso\n</think>\n\ntwo<|im_end|>"


def test_an_end_of_text_behind_the_last_turn_does_not_hide_its_end(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(PHI)
    ids, mask = ChatEncoder(folder).encode(TALK)
    assert ids.tolist() == _theirs(folder, TALK)["input_ids"]
    assert _learnt(folder, ids, mask) == ["low 日本 👩‍👩‍👧‍👦<|end|>", "\n\nhigh\n\n  <|end|>"]


def test_text_in_parts_is_taken_where_the_template_takes_it(
    make_folder: MakeFolder, chatml: ChatEncoder
) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, *TALK[2:3]]
    folder = make_folder(LLAMA)
    ids, _ = ChatEncoder(folder).encode(messages)
    theirs = _theirs(folder, messages, date_string="26 Jul 2024")
    assert ids.tolist() == theirs["input_ids"]
    with pytest.raises(ValueError, match=r"message 0: content is a list; .* accepts no list"):
        chatml.encode(messages)
    messages[0]["content"] = [{"type": "image", "image": "cat.png"}]
    with pytest.raises(ValueError, match="accepts only text parts"):
        ChatEncoder(folder).encode(messages)


def test_no_torch_is_loaded(make_folder: MakeFolder) -> None:
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from data_prep.tokenizing.chat import ChatEncoder\n"
        "ChatEncoder(Path(sys.argv[1])).encode(json.loads(sys.argv[2]))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    for template in (CHATML, MARKED):
        command = [sys.executable, "-c", script, str(make_folder(template)), json.dumps(TALK)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
