"""`medical`: a doctor asks about symptoms, history and risks; diagnosis and advice get 0 to 10 points (2603.23550).

1. A patient opens with a complaint and an age. A symptom, a history and perhaps a risk factor are hidden; the opening tells
   at most one of them. Complaint, symptom and history determine the condition (`mtrl_envs.medical.knowledge`).
2. The agent has at most six turns. A diagnosis with advice ends the conversation. The score is the
   points / 10; the metric `accurate` is 1 for at least 8 points.
3. An immediate diagnosis (`greedy`) guesses among four conditions; asking first (`expert`) takes up to four turns.
4. With `contexts=PATH` the patients come from recorded consultations (`mtrl_envs.medical.consultations`).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mtrl_envs.base import Agent, Context, Probe, User
from mtrl_envs.llm.options import user_kind
from mtrl_envs.medical.agents import OTHERS, Doctor
from mtrl_envs.medical.consultations import check_file, consultations
from mtrl_envs.medical.knowledge import CONDITIONS, RISKS, TOPICS, sample_case
from mtrl_envs.medical.llm import patient as llm_patient
from mtrl_envs.medical.moves import doctor_move
from mtrl_envs.medical.recorded import RecordedDoctor, RecordedPatient, recorded_move
from mtrl_envs.medical.user import Patient
from mtrl_envs.scripted.intents import clean, template_markers
from mtrl_envs.scripted.options import share
from mtrl_envs.scripted.slots import SLOTS, Horizon, HorizonEnvironment, SlotAgent, SlotUser
from mtrl_envs.scripted.splits import draw
from mtrl_ray.dialogue.conversation import Role

SYSTEM = "Find out what the patient has. Ask for symptoms, history, risks. End with: Diagnosis: X. Then advice."
SYSTEM_WITH_TABLE = (
    f"{SYSTEM} Heed no risk but the patient's ({', '.join(risk for risk in RISKS if risk != 'none')}).\n"
    + "\n".join(f"{c.complaint}, {c.symptom}, {c.history}: {c.name}. {c.advice}" for c in CONDITIONS.values())
)

OPENINGS: tuple[tuple[str, ...], ...] = ((), (), (), *((topic,) for topic in TOPICS))
"""Topics that the opening tells, drawn uniformly from this list."""

LONGEST_RESPONSE = 80
"""Longest well-formed response, in words."""


class Medical(HorizonEnvironment):
    """A doctor and a patient.

    Options: `noise` (probability that an answer of the scripted user is vague or wrong); `table` (whether the system prompt
    shows the knowledge table, for a policy without a warm start on it); `contexts` (path of a Parquet file
    with recorded consultations); `horizon` and `bernoulli` (`mtrl_envs.scripted.slots`); `user` ("scripted" or "llm") and
    `llm` (settings of `mtrl_envs.llm.user.LLMSettings`). Raises ConfigurationError for invalid values.
    """

    name: ClassVar[str] = "medical"
    max_turns: ClassVar[int] = 6
    warm_start: ClassVar[dict[str, float]] = {"expert": 0.4, "greedy": 0.5, "random": 0.1}

    def __init__(
        self,
        *,
        noise: float = 0.1,
        table: bool = False,
        contexts: str | None = None,
        horizon: int | None = None,
        bernoulli: bool = False,
        user: str = "scripted",
        llm: Mapping[str, Any] | None = None,
    ) -> None:
        self._noise = share(self.name, "noise", noise)
        self._system = SYSTEM_WITH_TABLE if table else SYSTEM
        self._contexts = None if contexts is None else check_file(contexts)
        self._llm = user_kind(self.name, user, llm)
        taken = {"user: llm": self._llm is not None, "table": table, "contexts": contexts is not None}
        apart = [option for option, used in taken.items() if used]
        self._horizon = Horizon.parse(self.name, horizon, bernoulli, apart)

    def context(self, split: str, index: int) -> Context:
        """The `index`-th patient of a split."""
        if self._horizon is not None:
            return self._horizon.context(self.name, split, index, sample_case, TOPICS)
        rng = random.Random(f"{self.name}/{split}/{index}/manner")
        drawn = draw(self.name, split, index, sample_case)
        if self._contexts is None:
            case, source = drawn | {"told": list(rng.choice(OPENINGS))}, None
        else:
            cases = consultations(self._contexts)[split]
            case, source = cases[index % len(cases)], f"consultation-{split}-{index % len(cases)}"
        hidden = case | {"patience": rng.choice([2, 3, 4])}
        return Context(f"{split}-{index}", split, index, self._system, hidden, source)

    def user(self, context: Context, seed: int) -> User:
        """The patient."""
        key = f"{self.name}/{context.id}/{seed}"
        if self._horizon is not None:
            patients = [Patient(f"{key}/{turn}", slot, 0.0) for turn, slot in enumerate(context.hidden[SLOTS])]
            return SlotUser(key, patients, TOPICS, self._noise, self._horizon)
        kind = Patient if self._contexts is None else RecordedPatient
        scripted = kind(key, context.hidden, self._noise)
        return scripted if self._llm is None else llm_patient(self._llm, key, seed, context.hidden, scripted)

    def agent(self, name: str, seed: int) -> Agent:
        """The scripted agent `expert`, `greedy` or `random`. KeyError for another name."""
        if self._horizon is not None:
            return SlotAgent(name, Doctor(name, seed))
        return Doctor(name, seed) if self._contexts is None else RecordedDoctor(name, seed)

    def probe(self, history: Sequence[tuple[Role, str]]) -> Probe | None:
        """See `AskingAgent.probe`."""
        if self._horizon is not None:
            return None
        return Doctor("expert", 0).probe(history, OTHERS)

    def well_formed(self, response: str) -> bool:
        """Whether a response asks something, diagnoses or greets, without template markup, in `LONGEST_RESPONSE` words."""
        short = len(clean(response).split()) <= LONGEST_RESPONSE
        move = doctor_move(response) if self._contexts is None else recorded_move(response)
        return short and not template_markers(response) and move.understood
