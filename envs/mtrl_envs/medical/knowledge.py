"""The knowledge table of `medical`: complaints, their conditions, the advice for each condition, and risk factors.

1. A complaint has four conditions. Each has a symptom and a history, some of which several conditions share, so the
   most informative question depends on the complaint and on earlier answers. The table is fictional, not medical advice.
2. A patient has one risk factor or none. The advice has to account for exactly this risk.
3. Points, 0 to 10: 4 for the right diagnosis; then 3 for the advice and 3 for accounting for the risk. A wrong diagnosis of
   the same complaint gets 1, unless the condition was urgent. An answer with at least 8 points counts as accurate.
"""

import random
import re
from dataclasses import dataclass

from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.splits import Profile

TOPICS = ("symptom", "history", "risk")
"""Topics that the doctor can ask about."""

ENOUGH = 8
"""Points from which a consultation counts as accurate."""


@dataclass(frozen=True)
class Condition:
    """One diagnosis: the complaint it belongs to, its symptom and history, and what to advise."""

    name: str
    complaint: str
    symptom: str
    history: str
    advice: str
    names: re.Pattern[str]
    advised: re.Pattern[str]

    @property
    def urgent(self) -> bool:
        """Whether the patient needs a hospital now."""
        return self.advice == HOSPITAL


HOSPITAL = "Go to hospital now."
_HOSPITAL = (r"(hospital|emergency|ambulance|er\b|911|112)",)

_TABLE: tuple[tuple[str, str, str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("migraine", "head", "light", "months", "Rest in the dark.", (r"migraine",), (r"dark", r"rest\b")),
    ("meningitis", "head", "light", "today", HOSPITAL, (r"meningitis",), _HOSPITAL),
    ("tension headache", "head", "neck", "months", "Stretch your neck.", (r"tension",), (r"stretch", r"relax")),
    ("sinusitis", "head", "nose", "days", "Use a nasal spray.", (r"sinus",), (r"nasal|spray|steam",)),
    (
        "reflux",
        "belly",
        "burning",
        "months",
        "Eat small meals.",
        (r"(acid )?reflux", r"gerd"),
        (r"(small|light)\w* meals?",),
    ),
    (
        "ulcer",
        "belly",
        "burning",
        "days",
        "Take an acid blocker.",
        (r"(stomach |gastric )?ulcer",),
        (r"acid", r"omeprazole"),
    ),
    ("food poisoning", "belly", "vomiting", "today", "Drink plenty.", (r"food poisoning",), (r"drink", r"fluids?")),
    ("appendicitis", "belly", "side", "today", HOSPITAL, (r"appendi",), _HOSPITAL),
    ("angina", "chest", "arm", "months", "See a heart doctor.", (r"angina",), (r"heart doctor", r"cardiolog")),
    ("heart attack", "chest", "arm", "today", HOSPITAL, (r"heart attack", r"infarct"), _HOSPITAL),
    ("pneumonia", "chest", "cough", "days", "Take antibiotics.", (r"pneumonia",), (r"antibiotic",)),
    ("asthma", "chest", "cough", "months", "Use an inhaler.", (r"asthma",), (r"inhal",)),
    ("tonsillitis", "throat", "spots", "days", "Gargle salt water.", (r"tonsil",), (r"gargl", r"salt")),
    (
        "common cold",
        "throat",
        "sneezing",
        "days",
        "Drink hot tea.",
        (r"common cold", r"a cold\b"),
        (r"(hot )?tea\b", r"rest\b"),
    ),
    ("hay fever", "throat", "sneezing", "months", "Avoid pollen.", (r"hay ?fever", r"pollen allergy"), (r"pollen",)),
    (
        "allergic reaction",
        "throat",
        "swelling",
        "today",
        HOSPITAL,
        (r"allergic (reaction|shock)", r"anaphyla"),
        _HOSPITAL,
    ),
    (
        "slipped disc",
        "back",
        "leg",
        "days",
        "Do gentle exercise.",
        (r"(slipped|herniated) dis[ck]",),
        (r"exercise", r"physio"),
    ),
    ("nerve damage", "back", "leg", "today", HOSPITAL, (r"nerve (damage|injury)", r"cauda"), _HOSPITAL),
    (
        "kidney infection",
        "back",
        "fever",
        "days",
        "Take antibiotics.",
        (r"kidney infection", r"pyelo"),
        (r"antibiotic",),
    ),
    (
        "kidney stone",
        "back",
        "waves",
        "today",
        "Take a painkiller.",
        (r"kidney stone", r"renal stone"),
        (r"pain ?killer",),
    ),
)

CONDITIONS: dict[str, Condition] = {
    row[0]: Condition(*row[:5], names=phrases(*row[5]), advised=phrases(*row[6])) for row in _TABLE
}

RISKS: dict[str, float] = {"none": 0.4, "pregnancy": 0.2, "penicillin": 0.2, "thinners": 0.2}
"""Risk factors and their probabilities."""

CARE: dict[str, str] = {
    "pregnancy": "Only if safe in pregnancy.",
    "penicillin": "No penicillin.",
    "thinners": "No aspirin.",
}
"""Sentence with which advice accounts for a risk."""

HEEDS: dict[str, re.Pattern[str]] = {
    "pregnancy": phrases(r"pregnan", r"(unborn|midwife|baby)\b"),
    "penicillin": phrases(r"penicillin", r"amoxicillin"),
    "thinners": phrases(r"aspirin", r"ibuprofen", r"bleeding", r"blood thinner"),
}

PATIENT: dict[str, dict[str, tuple[str, ...]]] = {
    "complaint": {
        "head": ("My head hurts.", "I have a bad headache."),
        "belly": ("My belly hurts.", "I have belly pain."),
        "chest": ("My chest hurts.", "I have chest pain."),
        "throat": ("My throat is sore.", "I have a sore throat."),
        "back": ("My back hurts.", "I have back pain."),
    },
    "symptom": {
        "light": ("Bright light hurts.", "I cannot stand light at all."),
        "neck": ("My neck is tight.", "My neck is stiff."),
        "nose": ("My nose is blocked.", "My nose is stuffed."),
        "burning": ("It burns after meals.", "There is a burning."),
        "vomiting": ("I vomit a lot.", "I keep vomiting."),
        "side": ("It moved to the right side.", "The right side is worst."),
        "arm": ("My left arm aches too.", "It goes into my arm."),
        "cough": ("I cough a lot.", "I have a bad cough."),
        "spots": ("I see white spots.", "There are white spots."),
        "sneezing": ("I sneeze all the time.", "I keep sneezing."),
        "swelling": ("My lips swell.", "My tongue is swelling."),
        "leg": ("It goes down my leg.", "My leg feels numb."),
        "fever": ("I have a fever.", "I feel hot, a fever."),
        "waves": ("The pain comes in waves.", "It comes in waves."),
    },
    "history": {
        "today": ("It began today.", "Since today."),
        "days": ("For a few days.", "It began some days ago."),
        "months": ("For months.", "It comes and goes for months."),
    },
    "risk": {
        "none": ("No, nothing.", "Nothing special."),
        "pregnancy": ("I am pregnant.", "I expect a baby."),
        "penicillin": ("I am allergic to penicillin.", "Penicillin makes me ill."),
        "thinners": ("I take blood thinners.", "I am on blood thinners."),
    },
}
"""Sentences of patients, by topic and value."""

TOLD: dict[str, dict[str, re.Pattern[str]]] = {
    "complaint": {
        "head": phrases(r"head"),
        "belly": phrases(r"belly\b", r"stomach\b"),
        "chest": phrases(r"chest\b"),
        "throat": phrases(r"throat\b"),
        "back": phrases(r"my back\b", r"back (pain|hurts)\b"),
    },
    "symptom": {
        "light": phrases(r"light\b"),
        "neck": phrases(r"neck\b"),
        "nose": phrases(r"nose\b"),
        "burning": phrases(r"burn"),
        "vomiting": phrases(r"vomit"),
        "side": phrases(r"right side\b"),
        "arm": phrases(r"arm\b"),
        "cough": phrases(r"cough"),
        "spots": phrases(r"spots\b"),
        "sneezing": phrases(r"sneez"),
        "swelling": phrases(r"swell"),
        "leg": phrases(r"leg\b"),
        "fever": phrases(r"fever\b"),
        "waves": phrases(r"waves\b"),
    },
    "history": {"today": phrases(r"today\b"), "days": phrases(r"days\b"), "months": phrases(r"months\b")},
    "risk": {
        "none": phrases(r"(no, )?nothing( special)?\."),
        "pregnancy": phrases(r"pregnant\b", r"baby\b"),
        "penicillin": phrases(r"penicillin\b"),
        "thinners": phrases(r"thinners?\b"),
    },
}
"""Patterns that recognise the sentences of patients."""


def consistent(case: Profile, told: frozenset[str]) -> list[Condition]:
    """The conditions of a complaint that are consistent with the known symptom and history; `told`: known topics."""
    return [
        condition
        for condition in CONDITIONS.values()
        if condition.complaint == case["complaint"]
        and all(getattr(condition, topic) == case[topic] for topic in ("symptom", "history") if topic in told)
    ]


def points(case: Profile, diagnosis: str | None, advised: bool, heeded: frozenset[str]) -> int:
    """Points of a final answer: `diagnosis` it names, whether it gives the right advice (`advised`), risks it accounts for."""
    right, given = CONDITIONS[case["condition"]], CONDITIONS.get(diagnosis or "")
    if given is None:
        return 0
    if given != right:
        return int(given.complaint == right.complaint and not right.urgent)
    return 4 + 3 * advised + 3 * (heeded == ({case["risk"]} - {"none"}))


def sample_case(rng: random.Random) -> Profile:
    """A patient: condition with its complaint, symptom and history, a risk factor, and an age, which has no effect."""
    condition = rng.choice(list(CONDITIONS.values()))
    risk = rng.choices(list(RISKS), weights=list(RISKS.values()))[0]
    return {
        "condition": condition.name,
        "complaint": condition.complaint,
        "symptom": condition.symptom,
        "history": condition.history,
        "risk": risk,
        "age": rng.randint(18, 45 if risk == "pregnancy" else 80),
    }
