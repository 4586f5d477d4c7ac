"""Files made from one template, in many scripts and with every kind of answer: one group a row. And paraphrases, which must be caught."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.questions.dataset import Row
from harness.questions.grouping import group_rows
from harness.questions.similarity import Shingles

SCRIPTS = {
    "english": (
        "bcdfghklmnprstvz",
        "aeiou",
        "what is the most common treatment for {} in adult patients?",
        "the most common treatment for {} is {}.",
    ),
    "russian": (
        "бвгдзклмнпрст",
        "аеиоу",
        "какой город является столицей страны {}?",
        "столицей страны {} является город {}.",
    ),
    "greek": ("βγδζκλμνπρστ", "αεηιου", "ποια είναι η πρωτεύουσα της χώρας {};", "η πρωτεύουσα της χώρας {} είναι {}."),
    "hindi": ("कखगचजटडतदनपबमरलस", "ािीुेो", "{} देश की राजधानी का नाम क्या है?", "{} देश की राजधानी का नाम {} है।"),
    "bengali": ("কখগচজটডতদনপবমরলস", "ািীুেো", "{} দেশের রাজধানীর নাম কী?", "{} দেশের রাজধানীর নাম {}।"),
    "tamil": ("கசடதபமயரலவன", "ாிீுெை", "{} நாட்டின் தலைநகரம் எது என்று சொல்லுங்கள்?", "{} நாட்டின் தலைநகரம் {} ஆகும்."),
    "urdu": ("بتجدرسفکلمن", "اوی", "{} کا دارالحکومت کون سا شہر ہے؟", "{} کا دارالحکومت {} شہر ہے"),
    "arabic": ("بتجدرسفقكلمنه", "اوي", "ما هي عاصمة دولة {} في العالم؟", "عاصمة دولة {} في العالم هي {}"),
    "thai": ("กขคจชดตทนบปพมรลวส", "าีูะอ", "เมืองหลวงของประเทศ{}มีชื่อว่าอะไร", "เมืองหลวงของประเทศ{}มีชื่อว่า{}"),
    "korean": ("가나다라마바사아자차카타파하", "국람선빈동길", "{}의 수도는 어느 도시입니까?", "{}의 수도는 {}입니다."),
    "latex": (
        "bcdfghklmnprstvz",
        "aeiou",
        r"simplify the expression $\frac{{\{}(x)}}{{x^2}}$ as far as it goes",
        r"$\frac{{\{}(x)}}{{x^2}} = {}$",
    ),
    "code": (
        "bcdfghklmnprstvz",
        "aeiou",
        "write python code which shows how to use the {} method",
        "def f():\n    x = make()\n    return x.{}()  # {}",
    ),
    "instruction": (
        "bcdfghklmnprstvz",
        "aeiou",
        "you are a helpful assistant. answer the question truthfully, in one sentence, without anything else. question: {}?",
        "it is, as far as {} goes, the {} function",
    ),
}
ANSWERS = ["short", "sentence", "yes or no", "one of five", "one shared word"]


def word(rng: random.Random, consonants: str, vowels: str) -> str:
    return "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(3))


def template(script: str, answers: str, count: int, seed: int) -> list[Row]:
    """`count` questions of one template, with another word in each."""
    rng = random.Random(seed)
    consonants, vowels, question, sentence = SCRIPTS[script]
    names: dict[str, None] = {}
    while len(names) < count:
        names[word(rng, consonants, vowels)] = None
    rows = []
    said = [word(rng, consonants, vowels) for _ in range(count)]
    for at, name in enumerate(names):
        answer = {
            "short": said[at],
            "sentence": sentence.format(name, said[at]),
            "yes or no": rng.choice(["yes", "no"]),
            "one of five": said[at % 5],
            "one shared word": f"{name} {said[0]}",
        }[answers]
        rows.append(Row(id=str(at), row=at + 1, question=question.format(name), answer=answer))
    return rows


def groups_of(rows: list[Row]) -> list[int]:
    return group_rows(rows, Shingles([row.question for row in rows], 5), threshold=0.5, long_answer_words=6).of


@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_each_row_of_a_template_is_a_group(script: str, answers: str) -> None:
    for count in (12, 30):
        assert len(set(groups_of(template(script, answers, count, count)))) == count


@pytest.mark.parametrize("answers", ANSWERS)
def test_six_hundred_questions_of_one_lower_case_template_stay_apart(answers: str) -> None:
    assert len(set(groups_of(template("english", answers, 600, 1)))) >= 598


def row(at: int, question: str, answer: str) -> Row:
    return Row(id=f"p{at}", row=1000 + at, question=question, answer=answer)


REWORDED = [
    (
        "what is the most common treatment for {} in adult patients?",
        "WHAT IS THE MOST COMMON TREATMENT FOR {} IN ADULT PATIENTS",
    ),
    (
        "what is the most common treatment for {} in adult patients?",
        "what, in adult patients, is the most common treatment for {}",
    ),
    (
        "what is the most common treatment for {} in adult patients?",
        "which is the most common treatment of {} in adult patients",
    ),
    (
        "what is the most common treatment for {} in adult patients?",
        "name the most common treatment for {} in adult patients",
    ),
    (
        "how many of 1,000 patients recover from {} within 3.0 days?",
        "how many of 1000 patients recover from {} within 3 days?",
    ),
    ("what does article 21-A of the {} code deal with?", "what does Article 21A of the {} code deal with?"),
    ("अनुच्छेद २१ में {} के बारे में क्या है?", "अनुच्छेद 21 में {} के बारे में क्या है?"),
]


@pytest.mark.parametrize(("one", "other"), REWORDED)
def test_a_paraphrase_is_caught_alone_and_in_a_file_of_its_template(one: str, other: str) -> None:
    pair = [row(0, one.format("zanamavir"), "rest and kelovin"), row(1, other.format("zanamavir"), "rest and kelovin")]
    assert len(set(groups_of(pair))) == 1
    found = groups_of([*template("english", "short", 40, 3), *pair])
    assert found[-1] == found[-2]
    assert len(set(found)) == 41


def test_a_typo_in_a_name_is_the_same_name_if_the_answers_agree() -> None:
    asked = "who appoints the {} of the country?".format
    assert (
        len(
            set(
                groups_of([row(0, asked("Comptroller"), "The President"), row(1, asked("Comptroler"), "The President")])
            )
        )
        == 1
    )
    file = [*template("english", "short", 40, 3)]
    question = SCRIPTS["english"][2].format
    same = [row(0, question("kelomidavir"), "rest"), row(1, question("kelomidavr"), "rest")]
    assert len(set(groups_of([*file, *same]))) == 41
    apart = [row(0, question("kelomidavir"), "rest"), row(1, question("kelomidavar"), "work")]
    assert len(set(groups_of([*file, *apart]))) == 42


def test_of_ten_phrasings_of_one_question_at_most_one_is_missed() -> None:
    starts = [
        "who may by law",
        "which body may by law",
        "who is entitled by law to",
        "who can by law",
        "by law, who may",
    ]
    starts += [
        "who has the right by law to",
        "say who may by law",
        "whose right by law is it to",
        "who then may by law",
        "which organ may by law",
    ]
    phrasings = [
        row(at, f"{start} admit new members into the general assembly of nations?", "the council")
        for at, start in enumerate(starts)
    ]
    found = groups_of([*template("english", "short", 40, 3), *phrasings])
    assert max(map(found.count, found[40:])) >= 9


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(SCRIPTS)), st.sampled_from(ANSWERS), st.integers(20, 60), st.integers(0, 10_000))
def test_templates_of_any_size_hardly_merge(script: str, answers: str, count: int, seed: int) -> None:
    assert len(set(groups_of(template(script, answers, count, seed)))) >= 0.9 * count
