"""The words behind a number: what is a unit, and what changes the value. Wrong ones must never pass."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import MathVerifier
from grpo_lightning.verifiers.base import rewarded

VERIFIER = MathVerifier()


def reward(completion: str, gold: str = "5") -> float:
    ((verdict, value),) = rewarded(VERIFIER, [Sample("", completion, gold)])
    assert verdict.error is None, verdict.error
    return value


def listed(*lines: str) -> list[str]:
    return "".join(lines).split("|")


NOT_UNITS = listed(
    "sixths|seventh|eighths|ninths|tenths|twelfths|sixteenths|nineteenths|twentieths|fortieths|fiftieth|hundredths|"
    "thousandths|ten-thousandths|one-thousandths|millionths|billionths|nth|thirtyseconds|half|halves|third|thirds|"
    "quarter|quarters|and a half|and a quarter|fifths of a mile|thousandths of an inch|-tenths|"
    "thousand|hundred|hundreds|tens|twos|twenty|million|millions|billion|billions|trillion|quadrillion|zillion|"
    "gazillions|milliard|milliards|Milliarden|Millionen|millones|mille|tausend|myriad|googol|million people|"
    "hundred apples|millions of dollars|hundred thousand|dozen|dozens|dozen eggs|score|scores|gross|gross of pens|"
    "lakh|lakhs|lac|lacs|crore|crores|lakhs of rupees|arab|kharab|bn|bn dollars|bln|mil|mill|mln|mn|mio|mrd|tn|trn|cr|"
    "grand|doz|thou|K|k|M|B|MM|千元|毫|厘|recurring|repeating|base two|in binary|bips|Hundertstel|Viertel|"
    "kilo|mega|giga|milli|micro|nano|万|千|百|億|兆|万円|만|천|억 원|лакх и|тысяч|миллион|"
    "млн|половина|halved|doubled|tripled|trebled|quadrupled|quintupled|octupled|squared|cubed|bisected|negated|"
    "inverted|apples doubled|apples, doubled|increased by one|reduced by half|multiplied by ten|divided by two|"
    "raised to two|lowered|truncated|rounded|rooted|factorial|modulo 3|square|cube|tenfold|threefold|-fold|fold|"
    "thousand-fold|times|times ten|twice|thrice|over two|minus one|plus one|minus|negative|below zero|permille|"
    "per mille|per mil|promille|‰|ppm|ppb|bp|bps|basis points|parts per million|parts per billion|point two|or so|odd|"
    "ish|to the fourth|to the third power|pi|root|of ten|'|!|^2|**2|²|/100|% of 10|e3|x10^3|*10|and six|or six|6|, 6|"
    "sinx|lnx|arctan|sinh|theta|lambda|infty|infinite|pq|pq apples|xy cm|sin x|uv|axy|mnp|αβ|dy/dx|modn|cis|floor|gcd|"
    "megabucks|kilodollars|naught|umpteen|multiples|duizend|miljoen|tusen|tysięcy|milyon|bin|juta|ribu|triệu|тисяч|"
    "χιλιάδες|مليون|ألف|แสน|wan|oku|mitad|medio|demi|halb|Hälfte|moitié|milhões|nghìn|doble|equal|removed|powered"
)
UNITS = listed(
    "apples|feet|months|baths|miles|cloths|paths|moths|youths|deaths|teeth|tablespoons|hundredweight|square feet|"
    "sq. ft.|cubic meters|feet squared|cm squared|units cubed|km/h|m/s|kg|mm|hours|minutes|seconds|years|year-olds|"
    "years old|dollars|cents|pounds|euros|rupees|pesos|yen|students|children|men|women|people|slices of pizza|"
    "red marbles|used cars|blue balls|boxes of pens|more apples|fewer apples|more|less|each|apiece|per day|a day|"
    "per person|points|percentage points|degrees|inches|yards|gallons|liters|litres|ounces|eggs|hats|strengths|lengths|"
    "widths|myths|booths|breaths|mammoths|faiths|oaths|cookies left|miles away|miles traveled|people surveyed|"
    "hours of work|pages long|pencils in all|ways|sides|roots|squares|cubes|rounds|raises|faces|edges|solutions|"
    "sandwiches|tickets sold|km per hour|mph|bags|millimeters|kilometers|milliliters|centimeters|nickels|dimes|"
    "pennies|coins|seeds|beds|cats|toys|quiches|potatoes|billboards|billiard balls|billionaires|millionaires|"
    "trilobites|villains|pillows|bills|pills|lilies|scoreboards|quartz|thirsty elephants|tents|tenants|tennis balls|"
    "tenors|fortnights|nights|weights|sixpacks|ninjas|onesies|ovens|stores|cores|forts|pavilions|stallions|"
    "% increase|(apples)|(miles)|apples (total)|"
    "left over|apples left over|saved|earned|needed|planted|used|equal parts|parts|degrees C|"
    "a.m.|o'clock|kilos|kgs|pcs|yrs|rooms/floor|media outlets|friends of Megan|"
    "AA batteries|ID cards|UK pounds|VR headsets|XP|jalapeños|Pokémon cards|crème brûlées|floor tiles|alpha wolves|"
    "abs workouts|megaphones|gigantic apples|teraflops|tiers|"
    "厘米|毫升|千克|小时|조각|元|円|个|人|원|рублей|яблок"
)


@pytest.mark.parametrize("words", NOT_UNITS)
def test_words_that_change_a_value_are_no_unit(words: str) -> None:
    assert reward(f"#### 5 {words}") < 1.0
    assert reward(f"\\boxed{{5 {words}}}") < 1.0
    assert reward(f"\\boxed{{5\\text{{ {words}}}}}") < 1.0
    assert reward(f"The answer is 5 ({words}).") < 1.0


@pytest.mark.parametrize("words", UNITS)
def test_units_leave_the_value_as_it_is(words: str) -> None:
    assert reward(f"#### 5 {words}") == 1.0
    assert reward(f"The answer is **5** {words}.") == 1.0
    assert reward(f"\\boxed{{5 {words.replace('%', chr(92) + '%')}}}") == 1.0


@pytest.mark.parametrize("said", ["5MM", "5powered", "5folded", "5removed", "5square", "5cube", "5mn", "5πr", "5πx"])
def test_a_word_right_after_the_number_may_change_it_too(said: str) -> None:
    assert reward(f"#### {said}") < 1.0


@pytest.mark.parametrize(
    "said", ["5pcs", "5yrs", "5cm", "5/-", "R5", "5\\cent", "5\\text{ J·s}", "5\\ \\mathrm{m/s^2}"]
)
def test_short_units_and_currencies(said: str) -> None:
    assert reward(f"#### {said}") == 1.0


@pytest.mark.parametrize(
    "said",
    [
        "28%",
        "28 %",
        "28\\%",
        "28 percent",
        "28 per cent",
        "28 per-cent",
        "28 pct",
        "28-percent",
        "0.28",
        "28 per cent of all",
    ],
)
def test_per_cent_is_percent(said: str) -> None:
    assert reward(f"#### {said}", "0.28") == 1.0
    assert reward(f"#### {said}", "28%") == 1.0
    assert reward(f"#### {said}", "2.8") < 1.0


NUMERALS = listed("one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|twenty|thirty|fifty")
ORDINALS = listed(
    "sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|twentieth|fortieth|hundredth|thousandth"
)
LATIN = listed("m|b|tr|quadr|quint|sext|sept|oct|non|dec|undec|duodec|vigint|cent|z|baz|gaz")


@given(
    number=st.integers(1, 10**6),
    word=st.one_of(
        st.builds(lambda ordinal, plural: ordinal + plural, st.sampled_from(ORDINALS), st.sampled_from(["", "s"])),
        st.builds(
            lambda root, end: f"{root}illion{end}", st.sampled_from(LATIN), st.sampled_from(["", "s", "th", "ths"])
        ),
        st.builds(lambda numeral, end: numeral + end, st.sampled_from(NUMERALS), st.sampled_from(["", "s", "fold"])),
        st.builds(lambda tens, end: f"{tens}-{end}s", st.sampled_from(["twenty", "thirty"]), st.sampled_from(ORDINALS)),
        st.builds(
            lambda stem, end: stem + end,
            st.sampled_from(["doubl", "tripl", "quadrupl", "divid", "halv"]),
            st.sampled_from(["ed", "ing", "es"]),
        ),
    ),
    noun=st.sampled_from(["", " apples", " of a mile", " dollars"]),
    capital=st.booleans(),
)
@settings(deadline=None)
def test_no_numeral_however_it_is_composed_is_a_unit(number: int, word: str, noun: str, capital: bool) -> None:
    word = word.capitalize() if capital else word
    assert reward(f"#### {number} {word}{noun}", str(number)) < 1.0
