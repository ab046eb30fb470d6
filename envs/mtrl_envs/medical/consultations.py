"""Recorded consultations as contexts of `medical`, from a Parquet file in the format of MTMedDialog (DoctorAgent-RL).

1. A row has `prompt` (messages; the second begins with "Patient's description: ") and `reward_model` (`ground_truth` with
   `diagnosis` and `recommendation`; `patient_information`: the doctor's questions with the patient's answers). The set has
   one row per turn; a consultation is taken once.
2. A consultation belongs to one split by a stable hash of its content; a split's contexts begin again when they are used up.
3. `assess` compares free text with free text by a table of diseases and one of kinds of advice: 6 points times the F1 of
   the diseases named, and up to 4 for at least half of the kinds of advice; 10 in all.
"""

import functools
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtrl_envs.medical.knowledge import CONDITIONS
from mtrl_envs.scripted import intents
from mtrl_envs.scripted.intents import phrases
from mtrl_envs.scripted.splits import Profile, split_of
from mtrl_ray.errors import ConfigurationError

COLUMNS = ("prompt", "reward_model")
_DESCRIPTION = re.compile(r"Patient's description:\s*(.*?)\s*(?:\nDecide next action:.*)?\Z", re.DOTALL)

DISEASES: dict[str, re.Pattern[str]] = {
    "gastroenteritis": phrases(r"gastroenteritis\b", r"(stomach|gastrointestinal|gastric) flu\b"),
    "gastritis": phrases(r"gastritis\b"),
    "enteritis": phrases(r"enteritis\b", r"(entero)?colitis\b", r"intestinal (infection|inflammation)\b"),
    "reflux": phrases(r"(acid |bile |gastroesophageal |gastro-oesophageal )?reflux\b", r"gerd\b", r"o?esophagitis\b"),
    "constipation": phrases(r"constipat"),
    "diarrhea": phrases(r"diarrh"),
    "ulcer": phrases(r"ulcer"),
    "appendicitis": phrases(r"appendi"),
    "cholecystitis": phrases(r"cholecystitis\b", r"gallstone", r"gallbladder\b"),
    "pancreatitis": phrases(r"pancreatitis\b"),
    "hemorrhoids": phrases(r"ha?emorrhoid", r"piles\b"),
    "irritable bowel": phrases(r"irritable bowel", r"ibs\b"),
    "helicobacter": phrases(r"h(elicobacter|\.)? ?pylori\b"),
    "indigestion": phrases(r"dyspepsia\b", r"indigestion\b", r"intestinal dysfunction\b"),
    "cirrhosis": phrases(r"cirrhosis\b"),
    "cold": phrases(r"(common )?cold\b", r"(upper )?respiratory (tract )?infection\b"),
    "influenza": phrases(r"(?<!stomach )(?<!gastric )(?<!gastrointestinal )flu\b", r"influenza\b"),
    **{
        name: condition.names
        for name, condition in CONDITIONS.items()
        if name not in ("reflux", "ulcer", "common cold")
    },
}
"""Patterns of diseases, by name."""

ADVICE: dict[str, re.Pattern[str]] = {
    "light diet": phrases(
        r"(bland|light|balanced|soft|regular|healthy)\b[^.]{0,25}\b(diet|meals?|foods?|eating)", r"porridge\b"
    ),
    "avoid irritants": phrases(r"(spicy|greasy|oily|acidic|irritating|raw|fried|cold) ", r"(smoking|alcohol|coffee)\b"),
    "drink": phrases(r"(water|fluids?|hydrat\w*|drink plenty)\b"),
    "fibre": phrases(r"(fib(re|er)|fruits?|vegetables?)\b"),
    "rest": phrases(r"(rest|sleep)\b"),
    "exercise": phrases(r"(exercise|activity|walk|walking|massage)\b"),
    "medicine": phrases(
        r"(tablets?|capsules?|granules|powder|pills?|medicines?|medications?|antibiotics?|antacids?|prescribed|probiotics?)\b",
        r"(take|taking|using) [a-z]+(in|ol|ide|one|ate|ine)\b",
    ),
    "tests": phrases(r"(tests?|endoscopy|gastroscopy|colonoscopy|ultrasound|examination|x-ray|ct)\b"),
    "doctor": phrases(r"(follow up|follow-up|see a doctor|hospital|medical attention|consult|further evaluation)\b"),
    "calm": phrases(r"(stress|anxiety|relax|relaxation|mood)\b"),
}
"""Patterns of kinds of advice, by name."""


def check_file(path: str) -> str:
    """`path`, if it is a Parquet file with the columns. Raises ConfigurationError in one sentence."""
    try:
        schema = pq.read_schema(path)
    except (OSError, TypeError, pa.ArrowInvalid) as error:
        reason = (
            "there is no such file"
            if not Path(str(path)).is_file()
            else f"it is no Parquet file ({type(error).__name__})"
        )
        raise ConfigurationError(f"medical: contexts is {path!r}, but {reason}") from None
    missing = [name for name in COLUMNS if name not in schema.names]
    missing += _missing_fields(schema) if not missing else []
    if missing:
        raise ConfigurationError(
            f"medical: the file {path!r} named by contexts lacks {', '.join(missing)}; it needs the columns of MTMedDialog's "
            "training set: prompt, and reward_model with ground_truth (diagnosis, recommendation) and patient_information"
        )
    return path


def _missing_fields(schema: pa.Schema) -> list[str]:
    """The fields that `reward_model` lacks."""
    wanted = {
        "ground_truth": ("diagnosis", "recommendation"),
        "patient_information": ("doctor_question", "patient_response"),
    }
    outer = schema.field("reward_model").type
    missing = []
    for name, inner in wanted.items():
        index = outer.get_field_index(name) if pa.types.is_struct(outer) else -1
        kind = outer.field(index).type if index >= 0 else pa.null()
        kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        known = {kind.field(at).name for at in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        missing += [f"reward_model.{name}.{field}" for field in inner if field not in known]
    return missing


@functools.lru_cache(maxsize=4)
def consultations(path: str) -> dict[str, list[Profile]]:
    """The consultations of a checked file by split, in order of the file. Raises ConfigurationError if a split has none."""
    table = pq.read_table(path, columns=list(COLUMNS))
    found: dict[str, Profile] = {}
    for row in table.to_pylist():
        case = _consultation(row)
        if case is not None:
            found.setdefault(repr(case), case)
    cases: dict[str, list[Profile]] = {"train": [], "test": []}
    for case in found.values():
        cases[split_of(case)].append(case)
    empty = [split for split, members in cases.items() if not members]
    if empty:
        raise ConfigurationError(
            f"medical: the file {path!r} named by contexts has {len(found)} usable consultations, none of them for the split "
            f"{empty[0]!r}; a usable one has a description, a diagnosis of the table and an answered question"
        )
    return cases


def _consultation(row: dict[str, Any]) -> Profile | None:
    """The profile of a row; None for a row that lacks its description, a known diagnosis or answers."""
    prompt, reward = row["prompt"] or [], row["reward_model"] or {}
    described = _DESCRIPTION.search(prompt[1].get("content") or "") if len(prompt) > 1 else None
    truth = reward.get("ground_truth") or {}
    pairs = [
        [" ".join(pair["doctor_question"] or []), " ".join(pair["patient_response"] or [])]
        for pair in reward.get("patient_information") or []
    ]
    answered = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
    if described is None or not answered or not named(truth.get("diagnosis") or "", DISEASES):
        return None
    return {
        "description": described[1],
        "diagnosis": truth["diagnosis"],
        "advice": truth.get("recommendation") or "",
        "answers": answered,
    }


def named(text: str, table: dict[str, re.Pattern[str]]) -> set[str]:
    """The keys of a table whose pattern matches the text."""
    cleaned = intents.clean(text)
    return {name for name, pattern in table.items() if pattern.search(cleaned)}


def assess(answer: str, case: Profile) -> float:
    """Points of a final answer, 0 to 10 (rule 3)."""
    truth, given = named(case["diagnosis"], DISEASES), named(answer, DISEASES)
    wanted = named(case["advice"], ADVICE)
    f1 = 2 * len(truth & given) / (len(truth) + len(given))
    advice = min(1.0, 2 * len(wanted & named(answer, ADVICE)) / len(wanted)) if wanted else 1.0
    return (6 * f1 + 4 * advice) if f1 else 0.0
