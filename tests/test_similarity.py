import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metrics.normalize import normalize_question as normalise
from harness.questions import grouping, meaning, normalised, similarity
from harness.questions.dataset import Row
from harness.questions.grouping import group_rows, is_long
from harness.questions.meaning import Meanings
from harness.questions.paraphrase import ask_the_same, is_typo
from harness.questions.similarity import Shingles, candidates

text = st.text(st.sampled_from("abcde "), max_size=25)


def row(question, answer, group=None):
    return Row(id=question, row=1, question=question, answer=answer, group=group)


def groups(rows, **options):
    settings = {"threshold": 0.5, "long_answer_words": 6} | options
    return group_rows(rows, Shingles([r.question for r in rows], 5), **settings)


def jaccard(a, b, n=5):
    """The definition, on sets of n-grams."""
    a, b = ({t[i : i + n] for i in range(max(1, len(t) - n + 1))} for t in (normalise(a), normalise(b)))
    return len(a & b) / len(a | b)


def test_normalise():
    assert normalise("  What's  Article 21-A?\n") == "what s article 21a"
    assert normalise("ＦＵＬＬ width, ﬁ") == "full width fi"
    assert normalise("अनुच्छेद १४ क्या है?") == "अनुच्छेद 14 क्या है"
    assert normalise("1,00,000 in C# and C++: 3.0 or -5") == "100000 in c# and c++ 3 or -5"
    assert normalise("銅の沸点は、何度？") == "銅の沸点は 何度"
    # If nothing were left, all such questions would be equal.
    assert normalise("?!") == "?!"


PIECES = (
    "Article 21 A|section 3|U.S.A.|e.g.|3.50|.5|1,000|21-A|-5|- 5|(a)|( ii )|IV|XI2|2XI|I|a_B|B|c#|c++|it's|`x`|?|!=|->|...|第十二条|请问制度|"
    "Ⅷ|É|ǅ|Spain|ministers| |\t|\x1c|\0"
).split("|")
WORDING = st.builds(str.join, st.sampled_from(["", " "]), st.lists(st.sampled_from(PIECES), max_size=12))
"""Texts of what normalising, keys and names treat in some special way."""


@given(WORDING | st.text(st.characters(max_codepoint=127), max_size=30))
def test_plain_words_are_normalised_as_all_texts_are(text):
    assert normalised.normalised(text) == normalise(text)


@given(WORDING)
def test_keys_and_names_are_what_their_patterns_find_in_any_text(text):
    found = meaning.WORD.findall(text)
    roman = {
        word.casefold()
        for word in found
        if set(word) <= set("IVXLC") and (len(word) > 1 or word not in "IC" or not text.isupper())
    }
    bracketed = {f"({match.casefold()})" for match in meaning.BRACKETED.findall(text)}
    numbers = {word for word in normalise(text).split() if not word.isalpha() and any(map(str.isdigit, word))}
    assert meaning.keys(text, normalise(text)) == numbers | bracketed | roman | set(meaning.ORDINAL_HAN.findall(text))
    capital = [word for word in found if word[0].isupper()]
    heading = len(found) < 2 or (len(capital) > 2 and len(capital) >= meaning.TITLE_CASE * len(found))
    words = [] if heading else meaning.words(normalise(" ".join(capital)))
    assert meaning.names(text) == {word for word in words if len(word) > 1 and word not in meaning.STOP_WORDS}


@given(st.lists(WORDING.filter(str.strip), min_size=1, max_size=5))
def test_meanings_number_the_words_of_each_question_in_order(texts):
    meanings = Meanings.of([Row(str(at), at, text, "yes") for at, text in enumerate(texts)])
    for at, text in enumerate(texts):
        assert [meanings.vocabulary[number] for number in meanings.sequences[at]] == meaning.words(normalise(text))
        assert meanings.question[at].indices.tolist() == sorted(set(meanings.sequences[at]))


def test_is_long_counts_words_either_way():
    assert is_long("one two three four five six", 6)
    assert not is_long("one two three four five", 6)
    assert is_long("a — b — c d", 6)


@given(st.lists(text, min_size=2, max_size=6), st.integers(1, 6))
def test_jaccard_is_that_of_the_sets(texts, n):
    shingles = Shingles(texts, n)
    left, right = np.triu_indices(len(texts), 1)
    expected = [jaccard(texts[a], texts[b], n) for a, b in zip(left, right, strict=True)]
    assert shingles.jaccard(left, right) == pytest.approx(expected)


@given(st.lists(text, min_size=3, max_size=8), st.data())
def test_nearest_is_the_first_of_the_most_similar(texts, data):
    split = data.draw(st.integers(1, len(texts) - 1))
    queries, corpus = list(range(split)), list(range(split, len(texts)))
    best, similarity = Shingles(texts, 5).nearest(queries, corpus)
    for at, found, value in zip(queries, best, similarity, strict=True):
        scores = [jaccard(texts[at], texts[other]) for other in corpus]
        assert value == pytest.approx(max(scores))
        assert found == next(
            other for other, score in zip(corpus, scores, strict=True) if score == pytest.approx(max(scores))
        )


def test_candidates_hold_nearly_every_near_duplicate():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(300)]
    texts = []
    for _ in range(150):
        base = rng.choices(words, k=rng.randint(6, 14))
        texts.append(" ".join(base))
        for _ in range(3):
            changed = list(base)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(changed))] = rng.choice(words)
            texts.append(" ".join(changed))
    shingles = Shingles(texts, 5)
    left, right = np.triu_indices(len(texts), 1)
    near = shingles.jaccard(left, right) >= 0.5
    expected = set(zip(left[near].tolist(), right[near].tolist(), strict=True))
    pairs, _ = candidates(shingles, 0.5, [np.zeros(len(texts))])
    found = set(map(tuple, pairs.tolist()))
    assert len(expected) > 200
    assert len(expected & found) / len(expected) >= 0.98
    # They are candidates: most of the 179,700 pairs must not be looked at.
    assert len(found) < 20_000


def test_a_template_of_a_thousand_is_not_compared_with_itself_pair_by_pair():
    result = groups([row(f"What does Article {n} of the Constitution say?", f"Subject {n}") for n in range(1000)])
    assert result.rows_in_full_buckets > 0
    assert result.pairs_compared < 200_000
    assert len(set(result.of)) == 1000


def test_phrasings_far_apart_in_a_full_bucket_are_tied():
    rows = [
        row(f"What does Article {n} of the Constitution {verb}?", f"The {n * 7919} subject")
        for verb in ("say", "say then")
        for n in range(200)
    ]
    assert groups(rows).of == [*range(200), *range(200)]


SAME = [
    # Paraphrases: one answer, most words shared.
    (
        ("Who can, by law, admit new States into the Union?", "Parliament"),
        ("Who may by law admit a new State into the Union?", "Parliament by law"),
    ),
    (("Who appoints the Governor of a State?", "The President"), ("Who appoints the Governor?", "The President")),
    (
        ("Under Article 352, who proclaims an emergency?", "The President"),
        ("Who proclaims an emergency?", "The President"),
    ),
    (("Who is responsible for appointing Members?", "The President."), ("Who appoints the Members?", "The President")),
    (("What is the title of Part V?", "The Union"), ("What's the title of Part V?", "The Union")),
]
DIFFERENT = [
    (("What does Article 14 deal with?", "Equality"), ("What does Article 15 deal with?", "Discrimination")),
    (("What does Article 21 deal with?", "Life"), ("What does Article 21A deal with?", "Education")),
    (("In which Part is Article 14?", "Part III"), ("In which Part is Article 15?", "Part III")),
    (
        ("Which article deals with the abolition of titles?", "Article 18"),
        ("Which article deals with the abolition of untouchability?", "Article 17"),
    ),
    (("How many seats has Bihar?", "16"), ("How many seats has Goa?", "1")),
    (("What does sub-clause (a) say?", "One"), ("What does sub-clause (b) say?", "Two")),
    (("What is the title of Part I?", "The Union and its Territory"), ("What is the title of Part V?", "The Union")),
    (
        ("Which Part has the article on equality before law?", "Part III"),
        ("Which Part has the article on free schools for children?", "Part III"),
    ),
    (("What does the Article deal with?", "Equality"), ("What does Article 15 deal with?", "Discrimination")),
    (
        ("In which Part stands what concerns Panchayats?", "Part IX"),
        ("In which Part stands what concerns Tribunals?", "Part XIV"),
    ),
]


def asks_the_same(left, right, labels=(None, None)):
    rows = [row(*left), row(*right)]
    pair = np.array([[0, 1]])
    return bool(ask_the_same(Meanings.of(rows), pair, pair, labels)[0])


@pytest.mark.parametrize(("left", "right"), SAME)
def test_paraphrases_ask_the_same(left, right):
    assert asks_the_same(left, right)
    assert asks_the_same(right, left)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_templates_ask_different_things(left, right):
    assert not asks_the_same(left, right)
    assert not asks_the_same(right, left)


def test_different_labels_keep_a_shared_short_answer_from_tying():
    question = "Which Part of the Constitution contains the article that deals with {}?".format
    a, b = (question("titles"), "Part III"), (question("slavery"), "Part III")
    assert asks_the_same(a, b)
    assert not asks_the_same(a, b, labels=("18", "23"))


def test_each_reason_ties_and_is_named():
    long = "Parliament may by law admit new States"
    rows = [
        row("Who admits States?", long),
        row("Which body lets others join?", long + "."),
        row("When was it adopted?", "1949", group="g"),
        row("Where do lions live?", "Gir", group="g"),
        row("Who elects the Speaker of the House?", "The House"),
        row("who elects the Speaker, of the House", "Members"),
        row("Who then elects the Speaker of the House?", "The House"),
        row("Something else entirely", "Yes"),
    ]
    result = groups(rows)
    assert result.of == [0, 0, 2, 2, 4, 4, 4, 7]
    assert {link.reason for link in result.links} == {"group", "duplicate_question", "long_answer", "near_duplicate"}
    assert groups(rows, long_answer_words=8).of[:2] == [0, 1]


SUBJECTS = [
    "equality",
    "titles",
    "free speech",
    "life and liberty",
    "slavery",
    "religion",
    "minorities",
    "remedies",
    "village councils",
    "elections",
]


@pytest.mark.parametrize("labelled", [False, True])
def test_templates_do_not_chain_a_file(labelled):
    rows = []
    for n in range(1, 301):
        subject = f"{SUBJECTS[n % 10]} in matters of {'bcdfghjklm'[n // 45 % 10]}{'aeiou'[n % 5]}{'npqrstvwxz'[n // 10 % 10]}{n % 7 * 'a'}"
        label = f"article-{n}" if labelled else None
        rows += [
            row(f"What does Article {n} deal with?", subject.capitalize(), label),
            row(
                f"In one sentence, what does Article {n} provide?",
                f"Article {n} of the Constitution of India deals with {subject}.",
                label,
            ),
            row(f"In which Part is Article {n}?", f"Part {['I', 'II', 'III'][n % 3]}", label),
            row(f"Which article deals with {subject}?", f"Article {n}", label),
        ]
    result = groups(rows)
    sizes = sorted(map(result.of.count, set(result.of)))
    # By label: 450 groups of four. Without: what two phrasings of one article have in common, and subjects that come twice.
    assert sizes[-1] <= 8
    assert len(sizes) >= (290 if labelled else 850)


def test_a_chain_is_cut_unless_all_its_rows_are_tied_to_one_another():
    def link(left, right, reason="near_duplicate"):
        return grouping.Link(reason, left, right, 0.9)

    chain = [link(at, at + 1) for at in range(99)]
    of, cut = grouping._connect(100, chain, 0)
    assert cut == 1
    assert max(map(of.count, set(of))) == 2
    everyone = [link(a, b) for b in range(100) for a in range(b)]
    assert grouping._connect(100, everyone, 0) == ([0] * 100, 1)
    # What a label holds together is not cut, however long.
    assert grouping._connect(100, [link(at, at + 1, "group") for at in range(99)], 99) == ([0] * 100, 0)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("comptroler", "comptroller", True),
        ("hydrabad", "hyderabad", True),
        ("hyedrabad", "hyderabad", True),
        ("iran", "iraq", False),
        ("austria", "australia", False),
        ("21aaaa", "22aaaa", False),
        ("bihar", "bihari", True),
    ],
)
def test_is_typo(left, right, expected):
    assert is_typo(left, right) == is_typo(right, left) == expected


def test_the_nearest_in_a_large_file_is_found_by_candidates(monkeypatch):
    rng = random.Random(4)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=8)) for _ in range(600)]
    texts += [" ".join([*text.split()[:-2], *rng.choices(words, k=2)]) for text in texts[:200]]
    texts += [f"what is the capital of the country of {word}" for word in words[:200]]
    shingles, queries, corpus = Shingles(texts, 5), list(range(600, 900)), [*range(600), *range(900, 1000)]
    best, exact = shingles.nearest(queries, corpus)
    monkeypatch.setattr(similarity, "EXACT_PAIRS", 0)
    found, approximate = shingles.nearest(queries, corpus)
    assert "approximate" in similarity.nearest_method(300, 700)
    assert (approximate <= exact + 1e-12).all()
    assert np.mean(found[:200] == best[:200]) >= 0.99
    # Of a template some other row is found, nearly as near as the nearest.
    assert np.mean(exact - approximate) < 0.02


few = st.lists(
    st.builds(
        row,
        st.sampled_from([a[0] for pair in SAME + DIFFERENT for a in pair]),
        st.sampled_from(["Yes", "1949", "a b c d e f g"]),
        st.sampled_from([None, "x", "y"]),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(few, few)
def test_rows_added_break_no_firm_tie(old, new):
    before, after = groups(old), groups(old + new).of
    # Ties by label and equal questions are independent of added rows; those of near-duplicates may change with them.
    for link in before.links:
        if link.reason in ("group", "duplicate_question"):
            assert after[link.left] == after[link.right]


@settings(max_examples=20, deadline=None)
@given(few, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_group(rows, rng):
    order = list(range(len(rows)))
    rng.shuffle(order)
    first, second = groups(rows).of, groups([rows[at] for at in order]).of
    place = {at: i for i, at in enumerate(order)}
    for a in range(len(rows)):
        for b in range(a):
            assert (first[a] == first[b]) == (second[place[a]] == second[place[b]])
