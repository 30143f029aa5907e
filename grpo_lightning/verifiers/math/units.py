"""Decides whether the words after a number are a unit, which leaves its value as it is, or change it.

Units are never checked: 42 apples, 42 km and 42 are equal. So a word that changes a value must not pass for one. These
words are known by how they are built, since no list of them is complete: numerals and all that is composed of numerals
(``sixths``, ``hundreds``, ``twenty-fifths``, ``tenfold``), everything in ``-illion``, and verbs of arithmetic in any
form (``halved``, ``doubling``). A participle that ends the answer right after the number is taken for one of them, but
for those of stories (``5 saved``). A word in other than English letters must be a known unit, and so must two letters.
"""

from __future__ import annotations

import re
from functools import lru_cache

_ONES = (
    "zero|naught|nought|nil|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twelf|fif|eigh|nin|thir|for"
)
_NUMERAL = (
    rf"(?:{_ONES}|(?:thir|four|fif|six|seven|eigh|nine|ump)teen|(?:twen|thir|for|four|fif|six|seven|eigh|nine)t(?:y|ie)"
    r"|hundred|thousand|hund|thou|hunderd|myriad|dozen|score|gross|lakh|lac|crore|arab|kharab|googol(?:plex)?"
    r"|tausend|hundert|dutzend|docena|centena|duizend|miljoe?n|tusen|milyon|milyar|juta|ribu|wan|oku"
    # Million, billion, zillion, milliard, Millionen, millones; but no millionaires and no billiard balls.
    r"|[a-z]*illi[oó]n|milli?[oó]n|milion|milliard|miliard|milhão|milhões)"
)
# Fractions, multiples and plurals of numerals. Feet, months, baths and miles are none.
_OF_NUMERALS = re.compile(
    rf"(?:and|of)?{_NUMERAL}+(?:th|ths|s|es|e|en|i|a|y|fold|some|somes|ish|odd|something|seconds?)?"
    r"|[a-z]?ths?|umpteenth|nth|semis?|half|halves|hal[fv]\w*|thirds?|quarters?|fourths?|\w+fold|folds?"
    r"|once|twice|thrice|couple|(?:drit|vier|fünf|sechs|sieb|ach|neun|zehn)tel|(?:zwanzig|hundert|tausend|million)stel"
    r"|\w*i[eè]mes?|tercios?|cuartos?|quintos?|d[eé]cimos?|cent[eé]simos?|mil[eé]simos?|cien(?:tos?)?|mila|miliardi"
    r"|mitad|medio|demie?s?|halb\w*|h[aä]lfte|moiti[eé]|milh[aãoõ]\w*|d[uú]zias?|ngh[iì]n|dobles?|multiples",
    re.IGNORECASE,
)
# Short forms of magnitudes.
_SHORT = re.compile(
    r"kk|bn|bln|bil|mn|mln|mio|mrd|mld|tn|trn|tln|tril|thsd|tsd|doz|dz|crs?|mils?|mills?|milles?|grand|bps?|bips?|ppm|ppb"
    r"|ppt|kilo|mega|giga|tera|peta|exa|deca|deka|hecto|deci|centi|milli|micro|nano|pico|femto",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"(?:per|pro)[- ]?mill?es?|permill?s?|permyriads?|promill\w*|basis|pips?|parts?\s+(?:per|in|to|out)\b",
    re.IGNORECASE,
)
# A prefix of units before money: megabucks.
_PREFIXED = re.compile(
    r"(?:kilo|mega|giga|tera)(?:buck|dollar|euro|pound|rupee|yen|yuan|peso|franc|quid)\w*", re.IGNORECASE
)
# Verbs of arithmetic, in any form. After a length, "squared" and "cubed" belong to the unit.
_ARITHMETIC = re.compile(
    r"(?:doubl|tripl|trebl|[a-z]*upl|multipl(?=y|ied)|divid|subtract|deduct|negat|invert|invers|reciproc|opposit"
    r"|exponentiat|factorial|modulo|truncat|halv"
    # The nouns are fine: a 20 % increase, 4 raises, 3 rounds, 5 squares, 2 roots.
    r"|(?:increas|decreas|reduc|rais|lower|round|squar|cub|root|add|summ|[a-z]+sect)(?=ed|ing))\w*",
    re.IGNORECASE,
)
# Words that take the number back, or relate it to another one.
_RELATION = re.compile(
    r"or|and|nor|not|but|either|neither|maybe|perhaps|possibly|alternatively|to|than|between|through|if|is|are|was|were"
    r"|equals|minus|plus|times|over|divided|by|mod|below|odd|ish|shy|pi|sqrt|root|ln|log|exp|sin|cos|tan|choose"
    r"|percent|recurring|repeating|repeated|binary|octal|hex|hexadecimal|base|negative|infinity|oder|und|ou|et|o|y|e|или|и",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[^\W\d_²³]+")
# 42xy is algebra, not 42 of something: letters that make no word, functions, Greek letters.
_GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi|chi|omega"
_ALGEBRA = re.compile(
    r"[xyz]+|[abc]{2,3}|[a-z]?(?:xy|yz|xz|zx)[a-z]?|[b-df-hj-np-tv-xz]{3}"
    rf"|(?:arc)?(?:sin|cos|tan|cot|csc|sec(?=.))h?(?:[xyzn]|{_GREEK})?|(?:ln|log|exp|sqrt|mod|cis)(?:[xyzn]|{_GREEK})?"
    rf"|sqrt\w*|gcd|lcm|floor|ceil|infin\w*|infty|inf|abs|sum|cbrt|pi[rdx]|{_GREEK}"
)
_PARTICIPLE = re.compile(
    r"(?!(?:red|bed|seed|weed|feed|reed|saved|earned|needed|planted|used|baked|picked|collected|completed|scored|walked"
    r"|travell?ed|owed|finished|received|required|gained|attended|remained)$)[a-z]+ed",
    re.IGNORECASE,
)
_LENGTH = re.compile(
    r"(?:[mcdk]|k)?m|ft|in|yd|mi|feet|foot|inch(?:es)?|yards?|miles?|units?|\w*met(?:er|re)s?", re.IGNORECASE
)
# Magnitudes, numerals and fractions of Chinese, Japanese and Korean; of Hindi; of Russian.
_FOREIGN = re.compile(
    "[〇零一二三四五六七八九十百万萬亿億兆京垓两兩廿卅半倍割折负負点點又或和]|千(?![克米瓦卡])|[厘毫](?![米升克])|分之|[천만억백십영]|조(?!각)|반$|배$|또는"
    "|लाख|करोड|हज|हज़ार|सौ|अरब|आधा|"
    "тысяч|тыс|миллион|млн|миллиард|млрд|сот|десят|дюжин|половин|трет|четверт|процент|промилле|минус",
    re.IGNORECASE,
)
# Right after a number without a space, of the short words these alone are units: 2mn is algebra.
_SHORT_UNIT = re.compile(
    "[mcdknu]m|in|ft|yd|mi|[km]gs?|lbs?|oz|[mcdk]l|cc|qt|pt|gal|sq|cu|hrs?|min|sec|[mn]s|[ap]m|st|nd|rd|th|[km]ph|[rb]pm|"
    "mpg|pcs?|yrs?|wks?|[kmg]?hz|k?pa|psi|atm|bar|mol|kj|cal|[km]w|k?wh|hp|ev|[km]v|ma|db|[kmgt]b|rad|deg|pts|cts?",
    re.IGNORECASE,
)

_SHORT_WORD = re.compile(
    "of|in|at|on|an?|as|by|up|so|go|no|ad|ea|ox|au|cd|sr|ly|mos?|ppl|un|fl|ha|k[nt]|[mk]?wh|[mk]?ah|nm|tvs?|cds|dvds|tbsp?|tbs|tsp|wpm|sky|fly"
    "|(?-i:US|XL)",
    re.IGNORECASE,
)
# Units in other letters. A word of Chinese, Japanese or Korean begins with one.
_FOREIGN_UNIT = re.compile(
    "[µμ][gmlsFWVA]|[kM]?Ω|Å|\u2113"
    "|(?:[小公千厘毫分微]|[平立]方[公千厘分]?)?[个個人元円圆块年月日天岁歳时時分秒米度克斤吨升里本只隻条條张張辆輛朵棵头頭位名次种種"
    "组組页頁枚台件支間间家钟點点顆颗瓶杯箱][\u3040-\u30ff\u4e00-\u9fff]*"
    "|(?:개|명|원|시간|분|초|미터|센티|킬로|그램|조각|마리|권|장|살|년|일|달러|도|점|번|송이|그루)[\uac00-\ud7a3]*"
    "|(?:рубл|копе|яблок|конфет|книг|час|минут|секунд|дней|день|лет|год|доллар|евро|человек|детей|градус|штук|раз|учени"
    "|(?:кило|санти|милли)?(?:метр|грамм|литр))[\u0430-\u0451]*|[сдк]м|кг|мл|шт|мин|сек"
    "|[a-z]*m[eèé]tr[a-z]*|cent[ií]metros?|kil[oó]metros?|años?|días?|niñ[oa]s?|páginas?|árbol(?:es)?|lápi(?:z|ces)"
    "|années?|élèves?|äpfel|stück|schüler|bälle|bäume|cafés?",
    re.IGNORECASE,
)


@lru_cache(maxsize=4_096)
def is_unit(text: str, behind_space: bool = True) -> bool:
    """Whether words after a value leave it as it is.

    Args:
        text: the words, with what separates them.
        behind_space: whether the first one stands apart from the number.
    """
    if not text:
        return True
    words = _WORDS.findall(text.replace("o'clock", "clock"))
    if not words:
        return True
    if _is_algebra(words[0]) and (len(words[0]) < 3 or all(map(_is_algebra, words))):
        return False
    if not behind_space and _is_joined(words[0], text):
        return False
    if _PARTS.search(text) or _FOREIGN.search(text):
        return False
    if words[-1].lower() == "equal" or (
        len(words) == 1 and (_PARTICIPLE.fullmatch(words[0]) or words[0].lower() in ("square", "cube", "bin"))
    ):
        return False
    return not any(_changes(word, words[i - 1] if i else "") for i, word in enumerate(words))


def _is_joined(word: str, text: str) -> bool:
    """Whether a short word, right after the number, is not a unit that is known: 5mn."""
    return word.isascii() and len(word) in (2, 3) and text.startswith(word) and not _SHORT_UNIT.fullmatch(word)


def _is_algebra(word: str) -> bool:
    """Whether a word is algebra: pq, or floor, which is none in 14 floor tiles."""
    if _SHORT_UNIT.fullmatch(word) or _SHORT_WORD.fullmatch(word):
        return False
    return (len(word) == 2 and word.islower() and word.isascii()) or bool(_ALGEBRA.fullmatch(word))


def _changes(word: str, before: str) -> bool:
    lower = word.lower()
    if lower in ("squared", "cubed"):
        return not _LENGTH.fullmatch(before)
    # What is left over was not divided.
    if lower == "over" and before.lower() == "left":
        return False
    # Accents as in jalapeños occur in English; other letters are those of a language whose numerals are not known.
    if max(word) > "\u00ff":
        return not _FOREIGN_UNIT.fullmatch(word)
    # Millimetres are small.
    return word == "MM" or any(
        kind.fullmatch(word) for kind in (_OF_NUMERALS, _SHORT, _ARITHMETIC, _RELATION, _PREFIXED)
    )
