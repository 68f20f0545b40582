from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genius_lite.errors import UserError
from genius_lite.evaluate.answers import final_number, numbers, without_markdown
from genius_lite.evaluate.checkers import extract_answer, judge
from genius_lite.evaluate.choices import final_choice
from genius_lite.evaluate.scoring import Verdict
from genius_lite.recipe import CheckOptions
from tests.support.answers import check, texts

NUMERIC = [
    # as a model ends
    ("She has 72 apples.", "72", 1),
    ("12 + 60 = 72", "72", 1),
    ("**72**", "72", 1),
    ("72.", "72", 1),
    ("72.00", "72", 1),
    ("7.2", "72", 0),
    ("172", "72", 0),
    ("-72", "72", 0),
    ("", "72", 0),
    ("seventy-two", "72", 1),
    ("First 72, then 5 more", "72", 0),
    # marks
    ("So it is\n#### 72", "72", 1),
    ("#### 72 dollars\nIn 30 days", "72", 1),
    ("####72", "72", 1),
    ("#### Step 2: add\nthat makes 72", "72", 1),
    ("#### 2. Add them\nthat makes 72", "72", 1),
    ("The answer is 72. To check: 70 + 1 = 71", "72", 1),
    ("The answer is 71. Wait, no. The answer is 72.", "72", 1),
    ("The answer is not 71. The total is 72", "72", 1),
    ("The answer is not 72.", "72", 0),
    ("So it is 72, not 71", "72", 1),
    ("Es sind 72, nicht **71**.", "72", 1),
    ("That makes neither 71 nor 72", "72", 0),
    ("No 72", "72", 1),
    ("the final answer to the question is: **72**", "72", 1),
    ("**Answer:** 72 (of 100)", "72", 1),
    ("Answer:\n\n72\n\nExplained in 3 lines", "72", 1),
    ('{"answer": 72, "steps": 4}', "72", 1),
    ("The answer is 6 * 12 = 72.", "72", 1),
    ("The answer is obtained by adding:\n70 + 2 = 72", "72", 1),
    (r"\boxed{72} after 3 steps", "72", 1),
    (r"\boxed{70}, no: \boxed{72}", "72", 1),
    (r"$\boxed{x = 72}$", "72", 1),
    (r"\boxed{\text{72 apples}} for 3", "72", 1),
    (r"\boxed{\frac{144}{2}}", "72", 1),
    (r"\boxed{\boxed{72}} of 80", "72", 1),
    (r"\boxed{72", "72", 1),
    (r"\fbox{72}. The answer is 3.", "72", 1),
    ("<answer>72</answer> of 80", "72", 1),
    ("<answer>70</answer> or <answer> 72 </answer>!", "72", 1),
    ("<answer>72", "72", 1),
    # a response that does not decide
    ("The answer is 72 or 73.", "72", 0),
    ("The answer is 71 or possibly 72", "72", 0),
    ("It takes 71 or 72", "72", 0),
    ("5 km oder vielleicht 6 km", "6", 0),
    ("5或6", "6", 0),
    ("After 3 or 4 days there are 72", "72", 1),
    ("The answer is 1/2, or 0.5.", "0.5", 1),
    ("The answer is 50% or 0.5", "50", 1),
    ("The answer is 72 or more", "72", 1),
    ("The answer is 3 of 4", "3", 1),
    # the known answer
    ("72", "Natalia sold 48/2 = <<48/2=24>>24 clips.\nTogether 48+24 = <<48+24=72>>72.\n#### 72", 1),
    ("24", "Natalia sold 48/2 = <<48/2=24>>24 clips.\nTogether 48+24 = <<48+24=72>>72.\n#### 72", 0),
    ("6250", "6,250", 1),
    ("2.5", "$2.50", 1),
    # thousands, currencies, percent
    ("6,250", "6250", 1),
    ("$1,234,567.80", "1234567.8", 1),
    (r"\$1{,}234", "1234", 1),
    (r"1\,234", "1234", 1),
    ("1\u202f234", "1234", 1),
    ("1 234", "234", 1),
    ("1,2,3", "3", 1),
    ("1,2345", "2345", 1),
    ("€5", "5", 1),
    ("5€.", "5", 1),
    ("£ 5", "5", 1),
    ("50%", "50", 1),
    ("50%", "0.5", 1),
    ("0.5", "50%", 1),
    (r"50\%", "50", 1),
    ("50 percent", "0.5", 1),
    ("5%", "0.5", 0),
    ("50%", "50%", 1),
    ("5000%", "50%", 0),
    # signs
    ("it is -3", "-3", 1),
    ("it is −3", "-3", 1),
    ("-$3", "-3", 1),
    ("$-3", "-3", 1),
    ("$-3$", "-3", 1),
    ("(-3)", "-3", 1),
    ("= -3", "-3", 1),
    ("+3", "3", 1),
    ("pages 5-7", "7", 1),
    ("pages 5–7", "-7", 0),
    ("x-3", "3", 1),
    ("COVID-19", "19", 1),
    ("-0", "0", 1),
    # fractions and powers
    ("3/4", "0.75", 1),
    ("2 1/2", "2.5", 1),
    ("2½", "2.5", 1),
    ("½ of it", "0.5", 1),
    (r"\frac{3}{4}", "0.75", 1),
    (r"\dfrac34", "3/4", 1),
    (r"2\frac{1}{2}", "2.5", 1),
    (r"-\frac{1}{2}", "-0.5", 1),
    (r"\boxed{\frac{-1}{2}}", "-0.5", 1),
    (r"\boxed{\frac{-1}{2}}", "-1", 0),
    (r"\frac{1}{-2}", r"\frac{-1}{2}", 1),
    ("3 and 1/0", "3", 1),
    # roots, and multiples of pi
    (r"\boxed{2\sqrt{3}}", "2", 0),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1),
    (r"-\sqrt{16}", "-4", 1),
    (r"\sqrt[3]{64}", "4", 1),
    ("3√4", "6", 1),
    ("√(2.25)", "1.5", 1),
    (r"so x = 2\pi", "2", 0),
    (r"\boxed{2\pi}", "2π", 1),
    ("π r^2 with r = 2", "2", 1),
    ("on 12/05/2024", "2024", 1),
    ("1e3", "1000", 1),
    ("1.2E-3", "0.0012", 1),
    ("1.2 x 10^3", "1200", 1),
    (r"1.2 \times 10^{-3}", "0.0012", 1),
    ("10^3", "1000", 1),
    (".5", "0.5", 1),
    # digits that are no numbers
    ("72 m^2", "72", 1),
    ("72 cm^{2}", "72", 1),
    ("72 as in H2O", "72", 1),
    ("72 in version 1.2.3", "1.2", 1),
    ("72nd", "72", 1),
    ("72" + "0" * 5000, "72", 0),
    ("72, then " + "9" * 5000, "72", 1),
    ("٧٢", "72", 1),
]


@pytest.mark.parametrize(("response", "answer", "score"), NUMERIC)
def test_numeric(response, answer, score):
    assert check("numeric", response, answer) == score


@pytest.mark.parametrize(
    ("response", "answer", "tolerance", "score"),
    [
        ("3.33", "10/3", 0.0, 0),
        ("3.33", "10/3", 1e-2, 1),
        ("3.33", "10/3", 1e-4, 0),
        ("99", "100", 0.01, 1),
        ("-101", "-100", 0.01, 1),
        ("1e-9", "0", 1e-6, 0),
        ("0.1", "0.1000000001", 1e-6, 1),
    ],
)
def test_the_tolerance_is_relative_to_the_answer(response, answer, tolerance, score):
    assert check("numeric", response, answer, tolerance=tolerance) == score


CITIES = ["Rome", "Paris", "A dog", "New York"]
CHOICE = [
    ("B", "B"),
    ("B.", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("**B**", "B"),
    ("b", "B"),
    ("b)", "B"),
    ("B) Paris", "B"),
    ("**B. Paris**", "B"),
    ("B: Paris, since it is the capital", "B"),
    ("B\n\nIt is the capital.", "B"),
    ("Answer: B", "B"),
    ("**Answer**: (B)", "B"),
    ("answer: b", "B"),
    ("The answer is B because A is in Italy.", "B"),
    ("The correct answer is option B.", "B"),
    ("The correct answer is: **B) Paris**", "B"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{B}}", "B"),
    (r"$\boxed{\textbf{(B)}}$", "B"),
    ("<answer>B</answer>", "B"),
    ("#### B", "B"),
    ("The answer is Paris.", "B"),
    ("paris", "B"),
    ("The answer is new york", "D"),
    ("Rome is (A), but I choose (B)", "B"),
    ("I would go with option D", "D"),
    ("Choice C fits", "C"),
    ("Let me think.\nB", "B"),
    ("It cannot be Rome.\nD. New York", "D"),
    ("The answer is A. No: the answer is B.", "B"),
    ("Let us see.\nA. Rome: in Italy.\nB. Paris: in", None),
    ("Let us see.\nA. Rome: in Italy.\nB. Paris: in France.\nSo option B", "B"),
    ("The answer is not A. Option B it is", "B"),
    ("A dog is an animal", None),
    ("A train leaves at 5", None),
    ("The answer is a dog that barks", None),
    ("The answer is A or B", None),
    ("The answer isn't B", None),
    ("The answer is neither A nor B", None),
    ("Neither (A) nor (B)", None),
    ("All but B", None),
    ("A or B", None),
    # The options said again, from the first one on, before the response was cut off or decided.
    ("A. Rome\nB. Paris\nC. A dog", None),
    ("(A) Rome\n(B) Paris\n(C) A dog", None),
    ("**A. Rome**\n**B. Paris**\n\nSo (B)", "B"),
    ("A. Rome is wrong\nB. Paris is right\nSo B.", "B"),
    ("B. Paris\nA. Rome is in Italy", "B"),
    ("I think A, or B.", None),
    ("It can only be B", "B"),
    ("A, B", None),
    ("(A) or (B)", None),
    ("The answer is A or possibly B", None),
    ("A or possibly B", None),
    ("I think it is A, or possibly B.", None),
    ("I think A. Or maybe B", None),
    ("The answer is A, or maybe option B", None),
    ("Die Antwort ist A oder vielleicht B", None),
    ("It is (A) or perhaps (B)", None),
    ("答案是A或者可能B", None),
    ("B (or C)", None),
    ("The answer is B and not C", "B"),
    ("The answer is B and C", None),
    ("B)est", "B"),
    ("Because I said so", None),
    ("(E)", None),
    ("The answer is I think unclear", None),
    ("", None),
    ("...", None),
]


@pytest.mark.parametrize(("response", "letter"), CHOICE)
def test_choice(response, letter):
    assert final_choice(response, "ABCD", CITIES) == letter
    assert [check("choice", response, other, choices=CITIES) for other in "ABCD"] == [
        other == letter for other in "ABCD"
    ]


def test_a_choice_without_options_may_be_any_letter():
    assert check("choice", "(J)", "J") == 1
    assert check("choice", "Paris", "B") == 0


@pytest.mark.parametrize(
    ("response", "answer", "ignore_case", "score"),
    [
        ("Paris", "Paris", False, 1),
        ("  New \n York ", "New York", False, 1),
        ("paris", "Paris", False, 0),
        ("paris", "Paris", True, 1),
        ("STRASSE", "straße", True, 1),
        ("The capital is Paris", "Paris", False, 0),
        ("The answer is Paris.", "Paris", False, 1),
        ("The answer is Paris. It lies on the Seine.", "Paris", False, 1),
        ("**Answer:** *Paris*", "Paris", False, 1),
        ("The answer is Mr. Smith", "Mr. Smith", False, 1),
        (r"\boxed{\text{Paris}}", "Paris", False, 1),
        ("The answer is Rome. The answer is Paris.", "Rome", False, 0),
        ("**Paris**", "Paris", False, 1),
        ("", "Paris", False, 0),
    ],
)
def test_exact(response, answer, ignore_case, score):
    assert check("exact", response, answer, ignore_case=ignore_case) == score


@pytest.mark.parametrize(
    ("pattern", "group", "response", "score"),
    [
        (r"Result: (\d+)", None, "Result: 5, Result: 72", 1),
        (r"Result: (\d+)", None, "Result: 72, Result: 5", 0),
        (r"Result: (\d+)", 0, "Result: 72", 0),
        (r"\d+", None, "5 or 72", 1),
        (r"(a)?(?P<n>\d+)", "n", "72", 1),
        (r"(a)?(\d+)", None, "72", 0),
        (r"Result: (\d+)", None, "none", 0),
    ],
)
def test_regex(pattern, group, response, score):
    assert check("regex", response, "72", pattern=pattern, group=group) == score


@pytest.mark.parametrize(
    ("pattern", "group", "message"),
    [
        ("(", None, "not a regular expression"),
        (None, None, "needs a pattern"),
        ("(a)", 2, "no group 2"),
        ("a", "n", "no group 'n'"),
    ],
)
def test_unusable_patterns(pattern, group, message):
    with pytest.raises(UserError, match=message):
        check("regex", "a", "a", pattern=pattern, group=group)


def test_a_pattern_that_backtracks_without_end_is_stopped():
    options = CheckOptions(pattern="(a|aa)+$")
    assert judge("regex", "a" * 60 + "b", "a", options) == Verdict(0.0, timed_out=True)


@pytest.mark.parametrize(
    ("kind", "answer", "options", "message"),
    [
        ("numeric", "many", {}, "'many' holds no number"),
        ("choice", "E", {"choices": CITIES}, "'E' is not one of the letters A to D"),
        ("choice", "Paris", {}, "'Paris' is not one of the letters A to Z"),
    ],
)
def test_an_answer_of_another_kind(kind, answer, options, message):
    with pytest.raises(UserError, match=message):
        check(kind, "5", answer, **options)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is $1,000.00.", "1000"),
        ("That makes 1000 in all", "1000"),
        ("So **1,000**.", "1000"),
        ("2 + 3 = 5", "5"),
        (".5", "0.5"),
        ("Paris.", "paris"),
        ("(B)", "B"),
        ("x+1", "x+1"),
        (r"\boxed{1e3}", "1000"),
        (r"\boxed{18 \text{ dollars}}", "18"),
        ("The answer is **0.50** dollars", "0.5"),
        ("1/3", "0.3333333333"),
        ("The answer is 50%", "50"),
        (r"\boxed{x+1}", "x+1"),
        (r"\boxed{2x}", "2x"),
        ("The answer is  New\tYork.", "new york"),
        ("The answer is (B)", "B"),
        ("The answer is 5 because 2 and 3 make five: 2 + 3 = 5.", "5"),
        # an open text, whatever its last number is
        ("The answer is found by adding the two together.\n2 + 3 = 5", None),
        ("First we take the 3 apples away, then there are 5", None),
        ("He was born in 1921 and wrote for thirty years.\n\n2. His later life", None),
        ("2 or 3, or 5", None),
        # what is said beside it is another's
        ("Die Antwort ist 72, nicht 80.", "72"),
        ("The answer is 72 (not 80).", "72"),
        ("The answer is 72 and not 80", "72"),
        ("Réponse : 72, pas 80", "72"),
        (r"\boxed{2\sqrt{3}}", "3.464101615"),
        # a mark that holds nothing, and what is denied
        (r"\boxed{}", None),
        ("Answer: ...", None),
        ("The answer is not 5", None),
        ("No.", "no"),
        ("no idea", None),
        ("...", None),
        ("", None),
    ],
)
def test_extracted_answers_can_be_compared(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("**73** and *74*, `75`", "73 and 74, 75"),
        ("**The answer: 73**.", "The answer: 73."),
        ("$**73**$", "$73$"),
        # no emphasis
        *[
            (same, same)
            for same in ("2**3 = 8", "2 * 3 * 4", "2*3*4", "$f^*$ and $g^*$", "f^{*} g^{*}", "* one\n* two")
        ],
    ],
)
def test_text_without_markdown(text, plain):
    assert without_markdown(text) == plain


def test_numbers_keep_how_they_were_written():
    assert [n.text for n in numbers("$1,234.50, -0.10 and 3/4")] == ["1234.50", "-0.10", "3/4"]
    assert [n.value for n in numbers("1/3, 2 1/2, 5%")] == [Fraction(1, 3), Fraction(5, 2), Fraction(5)]


@given(texts)
def test_no_response_makes_a_checker_raise(response):
    for kind, answer, options in [
        ("exact", "x", {"ignore_case": True}),
        ("numeric", "7", {"tolerance": 0.1}),
        ("choice", "A", {}),
        ("choice", "A", {"choices": CITIES}),
        ("regex", "7", {"pattern": r"(\d+)"}),
    ]:
        assert check(kind, response, answer, **options) in (0.0, 1.0)
    extracted = extract_answer(response)
    assert extracted is None or extracted


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{}", "{:,}", "so {}.", "**{:,}**", "#### {:,}", r"\boxed{{{}}}", "The answer is ${:,}."]),
)
def test_every_spelling_of_a_whole_number_is_read(value, form):
    number = final_number(form.format(value))
    assert number is not None
    assert number.value == value
    assert extract_answer(form.format(value)) == str(value)


# Four times the length takes a quadratic reader 16 times the computing, which other programs do not add to.
@pytest.mark.parametrize(
    "piece",
    [
        "answer is ",
        r"\boxed{",
        "<answer>",
        "####",
        " ",
        "1,",
        "1 1/",
        "**",
        "* ",
        "*a ",
        "option ",
        "{",
        "(A",
        ".",
        "-",
        "9",
        "123,",
        "123.",
        "1 234 ",
        "1'234'",
        "1.234,",
        "Answer:",
        "Antwort ist nicht ",
        "答案",
        "答案是",
        "答えは",
        "정답은 C가 아",
        "3万",
        "5 million ",
        "twenty-",
        "und ",
        "quatre-vingt-",
        "七",
        "A oder ",
        "la ",
        "A\n",
        "の",
    ],
)
def test_long_responses_take_linear_time(piece):
    few, many = (_computing(piece * (length // len(piece)) + "x") for length in (8_000, 32_000))
    assert many < 11 * max(few, 0.004)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("piece", "times", "end"),
    [("9", 1_000_000, ""), ("Answer: ", 100_000, ""), ("答案是", 100_000, ""), ("234,", 250_000, "2345")],
)
def test_a_megabyte_is_read(piece, times, end):
    assert extract_answer(piece * times + end) != "7"
    assert check("numeric", piece * times + end, "7", decimal=",") == 0


@pytest.mark.timeout(60)
def test_nested_marks_take_linear_time():
    _computing(r"\boxed{" * 6000 + "7" + "}" * 6000)


def _computing(response):
    """Seconds of this thread's computing that all checkers take."""
    start = time.thread_time()
    check("exact", response, "x")
    check("numeric", response, "7")
    check("numeric", response, "7", decimal=",")
    check("choice", response, "A")
    extract_answer(response)
    without_markdown(response)
    return time.thread_time() - start


@pytest.mark.parametrize("pattern", ["(", "(?a)(?u)x", "(?V0)(?V1)x"])
def test_a_pattern_that_cannot_be_read_is_an_error_of_the_users(pattern):
    with pytest.raises(UserError, match="is not a regular expression"):
        check("regex", "x", "x", pattern=pattern)
