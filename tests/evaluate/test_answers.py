"""Final answers in the languages of the table, numbers in the ways of writing them, and votes beside checks."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given

from genius_lite.errors import UserError
from genius_lite.evaluate.answers import final_number
from genius_lite.evaluate.checkers import judge, read_answer
from genius_lite.evaluate.choices import final_choice
from genius_lite.evaluate.numbers import numbers, spelled
from genius_lite.evaluate.scoring import Verdict
from genius_lite.evaluate.words import LANGUAGES, LETTER, phrases
from genius_lite.recipe import AnswerKind, Check, CheckOptions
from tests.support.answers import check, texts

CITIES = ["Rome", "Paris", "Berlin", "Madrid"]


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_mark_of_the_table_is_read(name):
    language = LANGUAGES[name]
    for noun in phrases([language.answer]):
        glued = not _parts_words(noun)
        for mark in (f"{noun}:", f"{noun} :", f"**{noun}:**", f"{noun}：", f"{noun.upper()}:"):
            _reads(f"A 1. {mark} C", f"A 1. {mark} 42, 7.")
        for joined in phrases([language.equals]):
            mark = f"{noun}{joined}" if glued else f"{noun} {joined} "
            _reads(f"A 1. {mark}C.", f"A 1. {mark}42, 7.")
            _reads(f"A 1. {mark}(C).", f"A 1. {mark}**42** (7)")
            for option in phrases([language.option])[:1]:
                _reads(f"A 1. {mark}{option} C", f"A 1. {mark}42")
            for unlike in phrases([language.unlike])[:1]:
                for sentence in (f"{noun} {unlike} {joined} B", f"{noun} {joined} {unlike} B"):
                    sentence = sentence.replace(" ", "") if glued else sentence
                    assert final_choice(f"{sentence} or so", "ABCD") is None, sentence
        for either in phrases([language.either]):
            space = " " if _parts_words(either) else ""
            assert final_choice(f"{noun}: B{space}{either}{space}C", "ABCD") is None, (noun, either)


def test_the_documentation_names_every_language():
    said = " ".join((Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8").split())
    assert "; ".join(LANGUAGES) in said


def _parts_words(phrase: str) -> bool:
    return bool(re.search(LETTER, phrase))


def _reads(choice: str, number: str) -> None:
    assert final_choice(choice, "ABCD") == "C", choice
    found = final_number(number)
    assert found is not None
    assert found.value == 42, number


CHOICES = [
    "Antwort: C",
    "La réponse est C.",
    "La respuesta correcta es la C",
    "答案：C",
    "答案是 C。",
    "Ответ: C",
    "回答: (C)",
    "정답은 C입니다.",
    "Option A ist falsch. Die richtige Antwort lautet also C, denn B gibt es nicht.",
    "La bonne réponse est donc l'option C.",
    "La réponse correcte est la lettre C) Berlin",
    "A resposta correta é a alternativa C.",
    "La risposta esatta è la C.",
    "Het juiste antwoord is C.",
    "Daher ist die richtige Antwort C, denn A wäre falsch.",
    "Also lautet die Antwort (C), nicht A.",
    "Daher ist die Antwort C und damit ist die Antwort A falsch.",
    "Dus is het juiste antwoord **C**, want A is fout.",
    "Därför är rätt svar C, inte A.",
    "Derfor er svaret C, ikke A.",
    "Rätt svar är C.",
    "Poprawna odpowiedź to C.",
    "Правильный ответ — C.",
    "Ответ - (C)",
    "الإجابة الصحيحة هي C.",
    "सही उत्तर C है।",
    "Doğru cevap C şıkkıdır.",
    "Jawaban yang benar adalah C.",
    "Câu trả lời đúng là C.",
    "คำตอบคือ C",
    "正确答案是选项C，因为A不对。",
    "因此，正确答案为（Ｃ）。",
    "所以答案选C",
    "我选择C",
    "選択肢Cが正しい。",
    "答えはＣです。",
    "正解は「C」です。",
    "答えはAではなく、Cです。\n**C**",
    "따라서 정답은 **C**이다.",
    "Die Antwort ist Berlin.",
    "La réponse est « Berlin ».",
    "答えはBerlinです。",
    "So I think it must be C.",
    "Es muss also C",
    "The correct option is C.",
    "The answer is the option C",
]


@pytest.mark.parametrize("response", CHOICES)
def test_choices_in_other_languages(response):
    assert final_choice(response, "ABCD", CITIES) == "C"


@pytest.mark.parametrize(
    "response",
    [
        "Die Antwort ist nicht C",
        "La réponse n'est pas C",
        "La respuesta no es C",
        "答案不是C吗",
        "答えはCではない",
        "정답은 C가 아닙니다",
        "Die Antwort ist B oder C",
        "La respuesta es B o C",
        "答案是B或C",
        "答えはBかC",
        "Berlins Sender heißt RBB, er sendet in HD2",
        "A resposta depende da pergunta",
    ],
)
def test_no_choice_in_other_languages(response):
    assert final_choice(response, "ABCD", CITIES) is None


NUMBERS = [
    # (response, decimal mark of the task, value)
    ("1,234.5", ".", "1234.5"),
    ("1.234,5", ".", "1234.5"),
    ("1.234.567", ".", "1234567"),
    ("1'234.5", ".", "1234.5"),
    ("1’234’567", ".", "1234567"),
    ("1\u202f234.5", ".", "1234.5"),
    ("1.234", ".", "1.234"),
    ("3,5", ".", "5"),
    ("192.168.1.1", ".", "192.168"),
    ("1.125,2.250", ".", "2.25"),
    ("1.234,5", ",", "1234.5"),
    ("1.234", ",", "1234"),
    ("1.234.567,89", ",", "1234567.89"),
    ("1 234,5", ",", "1234.5"),
    ("1 234 567", ",", "1234567"),
    ("1\u00a0234,5", ",", "1234.5"),
    ("1'234,5", ",", "1234.5"),
    ("3,5", ",", "3.5"),
    ("3{,}5", ",", "3.5"),
    ("3.5", ",", "3.5"),
    ("0.125", ",", "0.125"),
    ("12.50", ",", "12.5"),
    ("1234.567", ",", "1234.567"),
    ("1,234.5", ",", "1234.5"),
    ("1,234", ",", "1.234"),
    ("1,234,567", ",", "1234567"),
    (",5", ",", "0.5"),
    ("-3,5 °C", ",", "-3.5"),
    ("3,5 %", ",", "3.5"),
    ("1; 2; 3,5", ",", "3.5"),
    (r"\frac{1,5}{2}", ",", "0.75"),
    # digits, signs and currencies of other scripts
    ("４２", ".", "42"),
    ("３．５", ".", "3.5"),
    ("１，２３４", ".", "1234"),
    ("٤٢", ".", "42"),
    ("٣٫٥", ".", "3.5"),
    ("१२३", ".", "123"),
    ("答案是−42", ".", "-42"),
    ("答えは-3です", ".", "-3"),
    ("R$ 5", ".", "5"),
    ("5 ₽", ".", "5"),
    ("₩5,000", ".", "5000"),
    ("￥５００", ".", "500"),
    ("Die Antwort lautet 42 Euro, also 3 Euro mehr.", ".", "42"),
    ("答案是42，因为有3行，每行14个。", ".", "42"),
    ("答：小明有42个苹果。", ".", "42"),
    # scale words
    ("5 million", ".", "5000000"),
    ("0 million", ".", "0"),
    ("0万5000", ".", "5000"),
    ("0 Mrd. Euro", ".", "0"),
    ("$2.5 billion", ".", "2500000000"),
    ("3,5 Millionen Euro", ",", "3500000"),
    ("2 Mrd. Euro", ",", "2000000000"),
    ("2 millions d'euros", ".", "2000000"),
    ("3 mil millones", ".", "3000000000"),
    ("5 тысяч", ".", "5000"),
    ("3万", ".", "30000"),
    ("3万5000円", ".", "35000"),
    ("2億5000万", ".", "250000000"),
    ("3百万", ".", "3000000"),
    ("1억 2000만 원", ".", "120000000"),
    ("5 cents", ".", "5"),
    ("5千克", ".", "5"),
    ("3만큼", ".", "3"),
    ("5k", ".", "5"),
    # units
    ("5 km", ".", "5"),
    ("5km/h", ".", "5"),
    ("72 m²", ".", "72"),
]


@pytest.mark.parametrize(("response", "decimal", "value"), NUMBERS)
def test_numbers_as_they_are_written(response, decimal, value):
    found = final_number(response, decimal)
    assert found is not None
    assert found.value == Fraction(value)


PERCENT = ["50%", "50 %", "50 percent", "50 Prozent", "50 pour cent", "50 por ciento", "50％", "٥٠٪", "百分之50"]
PERCENT += ["50パーセントです", "50퍼센트", "50 процентов"]


@pytest.mark.parametrize("text", PERCENT)
def test_percent(text):
    assert [(number.value, number.percent) for number in numbers(text)] == [(50, True)]


SPELLED = [
    ("zero", 0), ("seven", 7), ("Seventy-two apples", 72), ("twenty one", 21), ("one hundred and five", 105),
    ("three hundred forty-five thousand six hundred", 345_600), ("a hundred", 100), ("two million", 2_000_000),
    ("zero thousand", 0), ("zero hundred", 0),
    ("minus seven", -7), ("negative seven", -7),
    ("zweiundsiebzig", 72), ("dreihundertfünfundvierzig", 345), ("zweitausendsechzehn", 2016), ("einundzwanzig", 21),
    ("soixante-douze", 72), ("soixante et onze", 71), ("quatre-vingt-dix-sept", 97), ("quatre-vingts", 80),
    ("deux cents", 200), ("vingt et un", 21),
    ("setenta y dos", 72), ("veintiuno", 21), ("dieciséis", 16), ("quinientos cuatro", 504), ("mil doscientos", 1200),
    ("setenta e dois", 72), ("cento e vinte e um", 121), ("settantadue", 72), ("ventuno", 21), ("centotré", 103),
    ("duecento", 200), ("семьдесят два", 72), ("сто двадцать", 120), ("пятьсот", 500),
    ("七十二", 72), ("三百四十五", 345), ("一億二千万", 120_000_000), ("十六", 16), ("四个苹果", 4),
]  # fmt: skip


@pytest.mark.parametrize(("words", "value"), SPELLED)
def test_number_words(words, value):
    found = spelled(words)
    assert found is not None
    assert found[0].value == value
    assert check("numeric", f"The answer is **{words}**.", str(value)) == 1
    assert check("numeric", f"{words}.", str(value)) == 1


@pytest.mark.parametrize("words", ["sevens", "seventh", "tent", "oneself", "三明治", "apple", "", "and one", "unter"])
def test_what_is_no_number_word(words):
    assert spelled(words) is None


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("The answer is one of the largest numbers of all: 12", 12),
        ("Two and two is four, as one knows. In digits 4", 4),
        ("The answer is due to what we know of the world.\nIt is 42", 42),
        ("The answer is minus 7.", -7),
        ("Die Antwort ist minus 7 Grad", -7),
        ("one two", 1),
    ],
)
def test_number_words_give_way_to_digits(response, value):
    found = final_number(response)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [("5 million", "5000000", 1), ("5 million", "5", 1), ("5000000", "5 million", 1), ("5 thousand", "5 million", 0)],
)
def test_what_is_asked_for_may_be_millions(response, answer, score):
    assert check("numeric", response, answer) == score


def test_a_decimal_comma_is_read_where_the_task_says_so():
    assert check("numeric", "Die Antwort ist 3,5.", "3,50", decimal=",") == 1
    assert check("numeric", "Die Antwort ist 1.234.", "1234", decimal=",") == 1
    assert judge("numeric", "3,5", "1", CheckOptions(decimal=",")).answer == "7/2"
    for answer in ("3,5", "2,50 €", "1,2345"):
        with pytest.raises(UserError, match=r"has a decimal comma; write options: \{decimal: ','\}"):
            check("numeric", "3.5", answer)
    assert check("numeric", "6250", "6,250") == check("numeric", "1234567", "1,234,567") == 1


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is (B)", "B"),
        ("b)", "B"),
        ("B) Paris", "B"),
        ("Yes.", "yes"),
        ("The answer is YES", "yes"),
        ("答えは東京です。", "東京"),
        ("答え：東京", "東京"),
        ("La réponse est Paris.", "paris"),
        ("42km", "42"),
        ("60 km/h", "60"),
        ("The answer is seventy-two.", "72"),
        ("The answer is A or B.", "a or b"),
        ("这道题要先把两个数加起来，然后再乘以三，最后得到结果。", None),
        ("<think>The answer is 5.</think>The answer is 7.", "7"),
        ("<think>The answer is 5.", None),
    ],
)
def test_equal_answers_are_equal_strings(response, answer):
    assert read_answer("stated", response) == answer


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("Die Antwort ist Berlin.", "Berlin", 1),
        ("答えは東京です。", "東京", 1),
        ("答案：北京。", "北京", 1),
        ("La réponse est « Paris ».", "Paris", 1),
        ("La re\u0301ponse est cafe\u0301.", "café", 1),
        ("４２", "42", 1),
    ],
)
def test_exact_answers_in_other_languages(response, answer, score):
    assert check("exact", response, answer) == score


def test_a_thought_is_no_answer():
    cut = "<think>\nFirst 3 + 4 = 7, so after that I could try 12"
    whole = "<think>\nthe answer is \\boxed{5}, or (B)\n</think>\n\nThe answer is {}."
    assert check("numeric", cut, "12") == 0
    kinds: list[AnswerKind] = ["stated", "numeric", "choice"]
    assert [read_answer(kind, cut) for kind in kinds] == [None] * 3
    cases: list[tuple[Check, str]] = [("numeric", "7"), ("choice", "C"), ("exact", "Paris")]
    for kind, answer in cases:
        assert judge(kind, whole.replace("{}", answer), answer) == Verdict(1.0, answer)
    for answer, read in (("7", ["7", "7", None]), ("C", ["C", None, "C"])):
        assert [read_answer(kind, whole.replace("{}", answer)) for kind in kinds] == read


@given(texts)
def test_a_vote_counts_what_the_checker_reads(response):
    options = CheckOptions(pattern=r"([0-9]+)")
    for kind in {*get_args(Check)} - {"math-verify"}:  # which is asked in its own process
        stated = judge(kind, response, "A" if kind == "choice" else "1", options, CITIES).answer
        if kind == "choice":
            assert [check(kind, response, letter, CITIES) == 1 for letter in "ABCD"] == [
                letter == stated for letter in "ABCD"
            ]
        elif stated is not None and len(stated) < 60:
            assert check(kind, response, stated, pattern=options.pattern) == 1
