"""The texts of a study: what is trained on and held out, blanks, canaries and questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.study.canaries import make_canaries
from benchmarks.study.cloze import find_blanks
from benchmarks.study.corpora import Folders, prepare_corpora
from benchmarks.study.questions import line_questions, word_questions
from benchmarks.study.settings import MINIATURE, TUNING_SEED
from data_prep.shards import open_corpus


def test_seeds_hold_out_the_same_texts_or_each_its_own(tmp_path):
    two = replace(MINIATURE, seeds=(1, 2))
    for setting in (two, replace(two, heldout_of_each_seed=True)):
        folders = Folders(tmp_path / str(setting.heldout_of_each_seed))
        prepare_corpora(setting, folders)
        held, trained = {}, {}
        for seed in setting.all_seeds:
            corpus = open_corpus(folders.slice("code", seed))
            held[seed], trained[seed] = (
                {corpus.document(i, split).tobytes() for i in range(corpus.num_documents(split))}
                for split in ("val", "train")
            )
        assert held[1] != held[2] if setting.heldout_of_each_seed else held[1] == held[2]
        assert not held[1] & held[TUNING_SEED]
        assert not set.union(*held.values()) & set.union(*trained.values())
    assert two.identity("code") == MINIATURE.identity("code") != setting.identity("code")


def test_blanks_are_whole_words_that_tokens_begin():
    tokens = ["def", " solve", "r", "(", "x", "):", "\n", " return", " solve", "r", "\n"]
    found = find_blanks(tokens, domain="code")
    assert [(b.kind, b.first, b.last) for b in found] == [
        ("identifiers", 1, 3),
        ("identifiers", 8, 10),
        ("closing brackets", 5, 6),
    ]
    found = find_blanks(["In", " the", " beg", "inning", ":", " day", "."], domain="prose")
    assert [(b.first, b.last) for b in found] == [(2, 4), (5, 6)]


def test_canaries_are_the_seeds_own_and_their_rivals_differ():
    first = make_canaries(1, count=4, num_rivals=7, is_usable=lambda line: True)
    assert first == make_canaries(1, count=4, num_rivals=7, is_usable=lambda line: True)
    assert first != make_canaries(2, count=4, num_rivals=7, is_usable=lambda line: True)
    assert all(len({canary.secret, *canary.rivals}) == 8 for canary in first)


ARTICLE = """
{word} \\{word}\\, n. [OE. {word}.]
   {text} (Naut.) that many
   a thing can be{number}; as, a {use}.

   Syn: {use}.
"""


def test_questions_after_words_have_one_right_answer_and_do_not_name_it():
    words = ["anchor", "basket", "candle", "dagger", "engine"]
    kinds = ["The", "A", "Some", "All", "One"]
    texts = [
        ARTICLE.format(word=word.title(), text=f"{kind} of things", number=n, use=f"{word} " * 50)
        for n, (word, kind) in enumerate(zip(words, kinds, strict=True), start=1)
    ]
    texts.append(ARTICLE.format(word="Fig", text="Of figs, a thing", number=6, use="fig " * 50))
    texts.append(ARTICLE.format(word="Rare", text="Of what few say", number=7, use="it"))
    found = word_questions(texts, count=5)
    assert found == word_questions(texts, count=5)
    for question in found:
        right = question.options[question.answer].strip()
        number = words.index(right) + 1
        assert f"thing can be{number}\nWord:" in question.question
        assert "Naut" not in question.question and "as," not in question.question
        assert len(set(question.options)) == 4
    with pytest.raises(ValueError, match="only 5 of 6 questions"):
        word_questions(texts, count=6)


def test_questions_after_lines_ask_for_the_next_one():
    texts = [
        "".join(f"line {text} {line} is of a text\n" for line in range(9)) for text in range(4)
    ]
    for question in line_questions(texts, count=12):
        _, text, number, *_ = question.question.splitlines()[-1].split()
        assert question.options[question.answer] == f"\nline {text} {int(number) + 1} is of a text"
