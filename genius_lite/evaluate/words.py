"""The words by which answers are read, by language: the one table, and patterns made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from unicodedata import normalize

GLUED = r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana, Han and Hangul, for a class of characters: no space parts what they stand beside."""
# Whose letters have no case: `re` compiles such a class 30,000 characters at a time unless it is told so.
WORD = rf"(?-i:[^\W{GLUED}])"
"""A letter or digit of a script that parts its words."""
LETTER = rf"(?-i:[^\W\d_{GLUED}])"


class Language(NamedTuple):
    """What a language calls an answer, and what stands around it; phrases with commas between them."""

    answer: str
    """Nouns: "the answer"."""
    equals: str = ""
    """What joins them to the answer, within `gap` characters; a colon does so in every language."""
    unlike: str = ""
    """Negations, before or after what joins."""
    denied: str = ""
    """Negations that follow the answer."""
    ends: str = ""
    """Verbs that follow the answer."""
    option: str = ""
    """What a letter is called, in front of it."""
    article: str = ""
    """What may come before that."""
    adverb: str = ""
    """What may come before all of it: "is therefore B"."""
    either: str = ""
    """What stands between two letters of a response that does not decide."""
    percent: str = ""
    minus: str = ""
    gap: int = 60
    bare: bool = False
    """The noun alone marks a letter or number behind it."""
    wrong: str = ""
    """What calls it wrong, where verbs may come first: "daher ist die Antwort B", but not "ist Antwort B falsch"."""


LANGUAGES = {
    "English": Language(
        "answer, answers, correct option, right option, best option, correct choice, right choice, best choice",
        "is, would be, should be, must be, equals, equal",
        unlike="not, isn't, cannot, can't, neither, nor, except, all but",
        option="option, choice, letter",
        article="the",
        adverb="therefore, thus, hence, then, most likely, likely, probably, clearly, definitely, indeed, actually",
        either="or, and",
        percent="percent, per cent",
        minus="minus, negative",
    ),
    "German": Language(
        "Antwort, Antworten, richtige Option, richtige Lösung",
        "ist, sind, lautet, lauten, wäre, beträgt, heißt",
        unlike="nicht",
        option="Option, Möglichkeit, Buchstabe, Auswahl",
        article="die, der, das",
        adverb="also, daher, somit, demnach, folglich, wahrscheinlich, eindeutig",
        either="oder, und",
        percent="Prozent",
        minus="minus",
        wrong="falsch, nicht, inkorrekt, unmöglich, ausgeschlossen",
    ),
    "French": Language(
        *("réponse, réponses, bonne option, option correcte", "est, sont, serait, sera, vaut, égale", "pas"),
        option="option, choix, lettre, proposition",
        article="la, le, l",
        adverb="donc, alors, ainsi, probablement",
        either="ou, et",
        percent="pour cent, pourcent",
        minus="moins",
    ),
    "Spanish": Language(
        *("respuesta, respuestas, opción correcta, alternativa correcta", "es, son, sería, será", "no"),
        option="opción, alternativa, letra",
        article="la, el",
        adverb="entonces, por lo tanto, por tanto, pues, probablemente",
        either="o, y, u",
        percent="por ciento, porciento",
        minus="menos",
    ),
    "Portuguese": Language(
        *("resposta, respostas, opção correta, alternativa correta", "é, são, seria, será", "não"),
        option="opção, alternativa, letra",
        article="a, o",
        adverb="portanto, então, provavelmente",
        either="ou, e",
        percent="por cento",
        minus="menos",
    ),
    "Italian": Language(
        *("risposta, risposte, opzione corretta", "è, sono, sarebbe, sarà", "non"),
        option="opzione, alternativa, lettera",
        article="la, il, lo, l",
        adverb="quindi, dunque, probabilmente",
        either="o, e",
        percent="per cento, percento",
        minus="meno",
    ),
    "Dutch, Afrikaans": Language(
        *("antwoord", "is, luidt", "niet, nie"),
        option="optie, opsie, keuze",
        article="de, het, die",
        either="of, en",
        wrong="fout, onjuist, verkeerd, niet, nie",
    ),
    "Swedish, Danish, Norwegian": Language(
        *("svar, svaret", "är, er, blir", "inte, ikke"),
        option="alternativ",
        either="eller, och, og",
        percent="procent",
        wrong="fel, felaktigt, inte, ikke, feil, forkert",
    ),
    "Finnish": Language("vastaus", "on", option="vaihtoehto", either="tai, ja", percent="prosenttia"),
    "Polish": Language(
        "odpowiedź, odpowiedzią", "to, jest, brzmi, wynosi", "nie", option="opcja", either="lub, albo, i"
    ),
    "Czech, Slovak": Language("odpověď, odpoveď", "je, zní, znie", option="možnost, možnosť", either="nebo, alebo"),
    "Croatian, Serbian, Slovenian": Language("odgovor, одговор", "je, је", option="opcija", either="ili, ali"),
    "Romanian": Language(
        "răspuns, răspunsul", "este, e", "nu", option="varianta, opțiunea", either="sau, și", percent="la sută"
    ),
    "Hungarian": Language(
        "válasz", "a, az", option="lehetőség", either="vagy, és", percent="százalék", gap=0, bare=True
    ),
    "Turkish": Language("cevap, yanıt", option="seçenek, şık", either="veya, ya da, ve", bare=True),
    "Russian": Language(
        "ответ, правильный вариант",
        "это, будет, составляет, равен, равна, равно, —, –, -",
        unlike="не",
        option="вариант, буква",
        adverb="значит, следовательно",
        either="или, и",
        percent="процент, процента, процентов",
        minus="минус",
    ),
    "Ukrainian": Language(
        *("відповідь", "це, є, буде, —, –, -", "не"),
        option="варіант",
        either="або, чи",
        percent="відсотків",
        minus="мінус",
    ),
    "Greek": Language("απάντηση", "είναι", "δεν", option="επιλογή", article="η", either="ή, και", percent="τοις εκατό"),
    "Hebrew": Language("תשובה, התשובה", "היא, הוא", "לא", option="אפשרות", either="או"),
    "Arabic": Language(
        "الإجابة, الاجابة, إجابة, الجواب", "هي, هو", "ليست, ليس", option="الخيار, خيار", either="أو", percent="بالمئة"
    ),
    "Persian, Urdu": Language("پاسخ, جواب", "برابر است با", option="گزینه", either="یا", percent="درصد", bare=True),
    "Hindi, Marathi, Nepali": Language(
        "उत्तर", "है, आहे", denied="नहीं", ends="है, आहे, हो", option="विकल्प", either="या", percent="प्रतिशत", bare=True
    ),
    "Bengali": Language("উত্তর", "হল, হলো, হচ্ছে", option="বিকল্প", either="বা, অথবা", percent="শতাংশ", bare=True),
    "Telugu": Language("సమాధానం", bare=True),
    "Tamil": Language("விடை, பதில்", bare=True),
    "Indonesian, Malay": Language(
        *("jawaban, jawabannya, jawapan", "adalah, ialah", "bukan"),
        option="opsi, pilihan",
        either="atau",
        percent="persen",
    ),
    "Vietnamese": Language(
        "đáp án, câu trả lời", "là", "không phải", option="phương án, lựa chọn", either="hoặc", percent="phần trăm"
    ),
    "Swahili": Language("jibu", "ni", "si", option="chaguo", either="au", percent="asilimia"),
    "Thai": Language("คำตอบ", "คือ, เป็น", "ไม่ใช่, ไม่", option="ตัวเลือก, ข้อ", either="หรือ", gap=15),
    "Chinese": Language(
        "答案, 正确选项, 正確選項, 正确的选项, 正確的選項",
        "是, 为, 為, 应为, 應為, 选, 選, 等于, 等於, 即",
        unlike="不",
        option="选项, 選項, 选择, 選擇, 选, 選",
        either="或者, 或, 和, 与, 與, 及",
        minus="负, 負",
        gap=8,
    ),
    "Japanese": Language(
        "答え, 答, 回答, 解答, 正解, 正答, 正しい選択肢",
        "は, が",
        denied="ではな, ではあり, じゃな, でない",
        ends="です, だ, である, となります, になります",
        option="選択肢",
        either="または, もしくは, か, と",
        percent="パーセント",
        minus="マイナス",
        gap=2,
    ),
    "Korean": Language(
        "정답, 답, 답변, 해답",
        "은, 는, 이",
        denied="아니, 아닙, 아닌",
        ends="입니다, 이다, 이에요, 예요, 번입니다",
        option="선택지, 보기",
        either="또는, 혹은, 이나, 와, 과",
        percent="퍼센트",
        minus="마이너스",
        gap=2,
    ),
}

COUNTED = (
    # From zero on; twenty, thirty and so on. German's null is left out, as it is a word of English and of programs.
    (
        "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, "
        "sixteen, seventeen, eighteen, nineteen",
        "twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety",
    ),
    (
        ", eins/ein/eine, zwei, drei, vier, fünf, sechs, sieben, acht, neun, zehn, elf, zwölf, dreizehn, vierzehn, "
        "fünfzehn, sechzehn, siebzehn, achtzehn, neunzehn",
        "zwanzig, dreißig, vierzig, fünfzig, sechzig, siebzig, achtzig, neunzig",
    ),
    (
        "zéro, un/une, deux, trois, quatre, cinq, six, sept, huit, neuf, dix, onze, douze, treize, quatorze, "
        "quinze, seize",
        "vingt, trente, quarante, cinquante, soixante,, quatre-vingts/quatre-vingt/quatre vingts/quatre vingt",
    ),
    (
        "cero, uno, dos/dós, tres/trés, cuatro, cinco, seis/séis, siete, ocho, nueve, diez, once, doce, trece, "
        "catorce, quince, dieciséis, diecisiete, dieciocho, diecinueve",
        "veinte/veinti, treinta, cuarenta, cincuenta, sesenta, setenta, ochenta, noventa",
    ),
    (
        "zero, um/uma, dois/duas, três, quatro, cinco, seis, sete, oito, nove, dez, onze, doze, treze, "
        "quatorze/catorze, quinze, dezesseis, dezessete, dezoito, dezenove",
        "vinte, trinta, quarenta, cinquenta, sessenta, setenta, oitenta, noventa",
    ),
    (
        "zero, uno/una, due, tre/tré, quattro, cinque, sei, sette, otto, nove, dieci, undici, dodici, tredici, "
        "quattordici, quindici, sedici, diciassette, diciotto, diciannove",
        "venti/vent, trenta/trent, quaranta/quarant, cinquanta/cinquant, sessanta/sessant, settanta/settant, "
        "ottanta/ottant, novanta/novant",
    ),
    (
        "ноль, один/одна, два/две, три, четыре, пять, шесть, семь, восемь, девять, десять, одиннадцать, двенадцать, "
        "тринадцать, четырнадцать, пятнадцать, шестнадцать, семнадцать, восемнадцать, девятнадцать",
        "двадцать, тридцать, сорок, пятьдесят, шестьдесят, семьдесят, восемьдесят, девяносто",
    ),
    ("零, 一, 二/两/兩, 三, 四, 五, 六, 七, 八, 九", ""),
)
"""Number words: English, German, French, Spanish, Portuguese, Italian, Russian, Chinese and Japanese."""
HUNDREDS = {200: "duzentos, двести", 300: "trezentos, триста", 400: "четыреста"}
HUNDREDS |= {500: "quinientos, quinhentos", 700: "setecientos", 900: "novecientos"}
LINKS = "and, und, et, y, e"
"""What may stand between the words of a number."""
TIMES = {
    10: "十",
    100: "hundred, hundert, cent, cents, cien, ciento, cientos, cento, centos, cem, сто, сот, 百, 백",
    1000: "thousand, tausend, mille, mil, mila, duizend, тысяча, тысячи, тысяч, тыс, ribu, nghìn, 千, 천",
    10**4: "万, 萬, 만",
    10**5: "lakh, lakhs",
    10**6: "million, millions, Millionen, Mio, millón, millones, milhão, milhões, milione, milioni, miljoen, "
    "миллион, миллиона, миллионов, млн, juta, triệu",
    10**7: "crore, crores",
    10**8: "亿, 億, 억",
    10**9: "billion, billions, Milliarde, Milliarden, Mrd, milliard, milliards, bilhão, bilhões, miliardo, miliardi, "
    "miljard, миллиард, миллиарда, миллиардов, млрд, tỷ",
    10**12: "trillion, trillions, Billionen, billón, billones, trilhão, trilhões, 兆",
}
"""Scale words, in words and behind digits. A billion is the English one."""
UNITS = "km|cm|mm|mi|m|ft|in|kg|mg|g|lbs|lb|oz|ml|mL|l|L|hrs|hr|h|min|sec|ms|s|mph|kWh|USD|EUR|GBP|CNY|JPY|°C|°F|°"
"""Units that may stand right behind digits: 5km is 5, 5x is none."""
COUNTERS = "个個名人元块塊本只隻条條张張次天年月岁歲枚円日件台辆輛页頁分秒点點倍つ"
"""What follows a number in Han characters: before others they may be part of a word."""

_DASHES = "—–-"  # before digits, one is a minus


def phrases(listed: Iterable[str]) -> list[str]:
    """Return the phrases of lists with commas, accents in one character and in two, the longest first."""
    found = {normalize(form, phrase.strip()) for of in listed for phrase in of.split(",") for form in ("NFC", "NFD")}
    return sorted(found - {""}, key=lambda phrase: (-len(phrase), phrase))


def any_of(*listed: str) -> str:
    """Return a pattern of any of these phrases, none of them within a word; of none, one that matches nothing."""
    parted, glued = list[str](), list[str]()
    for phrase in phrases(listed):
        pattern = r"\s+".join(map(re.escape, phrase.split())) + r"(?=\s)" * (phrase in _DASHES)
        (parted if re.search(LETTER, phrase) else glued).append(pattern)
    sorts = [rf"(?<!{LETTER})(?:{'|'.join(parted)})(?!{LETTER})"] * bool(parted) + ["|".join(glued)] * bool(glued)
    return f"(?:{begins(*listed)}(?:{'|'.join(sorts)}))" if sorts else "(?!)"


def begins(*listed: str) -> str:
    """Return a pattern that looks ahead for a phrase's first letter, which is quicker than to try them all."""
    return f"(?=[{''.join(sorted({re.escape(phrase[0]) for phrase in phrases(listed)}))}])"


def every(field: str) -> str:
    """Return a pattern of what any language has in this field."""
    return any_of(*(getattr(language, field) for language in LANGUAGES.values()))
