"""Token ids of turns: a chat template is split into pieces once, then turns are only appended.

The template is probed (`chat_template`) and its text is tokenised once, including control tokens. A turn is then made from
these pieces and its text; nothing is rendered or re-tokenised during a conversation.

- An agent turn is what the sampler returned. The generation prompt ends the turn before it; the template's text after the
  end-of-turn token (a newline in ChatML) begins the turn after it. If the sampler stopped at its token limit, that turn also
  begins with the end-of-turn token.
- A turn's text is tokenised as plain text (`plain_text`), together with the template's adjacent ordinary words ("user\\n"), up
  to the nearest control token on each side. Role markers in it stay text. A template whose roles are opened by ordinary words
  alone is refused, because any user could forge them.
- Without a system message, the system turn has the template's default text: a default system prompt, a beginning-of-sequence
  token, or nothing. A template without a system role opens the user's turn there, and the system text and an empty line come
  before the first user message.

For ordinary conversations the history equals `apply_chat_template`. It differs

- if a text contains control tokens, which that function parses;
- if agent ids differ from the tokenizer's encoding of their text, or begin with white space that it would merge with the
  generation prompt's;
- if the template would rewrite earlier turns (removed reasoning, moved system text, another date), because sampled turns never
  change;
- if the conversation ends with an agent's turn, after whose last token nothing is added.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mtrl_ray.dialogue.chat_template import TemplateText, probe, renderer
from mtrl_ray.dialogue.conversation import Conversation, Finish, Role, Turn, visible_text
from mtrl_ray.dialogue.plain_text import control_tokens, encode_plain, plain_tokenizer
from mtrl_ray.errors import ConfigurationError, DataError

Piece = tuple[str | tuple[int, ...], ...]
"""Template text: ordinary words to tokenise with the adjacent text, and ids from one control token to another."""


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer and its chat template, prepared for appending turns. Picklable; one tokenizer call per turn.

    `plain` tokenises text without control tokens. `end_of_turn` ends an agent's turn; sampling stops at `stop_ids` (it,
    and the model's other end tokens, which replace it in the history if sampled).

    The pieces: `alone` opens a conversation without system text (its system part, its user part); `system` stands
    before a system text, after it, and before the first user's text; `agent_first` and `system_agent_first` are the same
    if the agent speaks first (None: the template requires a user); `follow` stands before a later user's text,
    `prompt` after a user's text with the generation prompt, `close` without.
    """

    tokenizer: PreTrainedTokenizerFast
    plain: Tokenizer
    end_of_turn: int
    stop_ids: tuple[int, ...]
    alone: tuple[Piece, Piece]
    system: tuple[Piece, Piece, Piece]
    agent_first: Piece | None
    system_agent_first: tuple[Piece, Piece] | None
    follow: Piece
    prompt: Piece
    close: Piece
    lead: str
    strips: frozenset[Role]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast, eos: Iterable[int] = ()) -> "ChatFormat":
        """Probe a tokenizer's chat template. `eos`: further end ids (the generation config's `eos_token_id`).

        Raises ConfigurationError if there is no template, its turns differ in format, an agent's turn does
        not end in one control token, or a user could open a role by writing ordinary words.
        """
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ConfigurationError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; use one that AutoTokenizer loads from tokenizer.json"
            )
        text = probe(renderer(tokenizer))
        reader = _Reader(tokenizer)
        end_of_turn, follow = reader.turn(text)
        own_eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        closing, opening = reader.cut(text.system[1], follow)
        return cls(
            tokenizer=tokenizer,
            plain=plain_tokenizer(tokenizer),
            end_of_turn=end_of_turn,
            stop_ids=tuple(dict.fromkeys([end_of_turn, *own_eos, *eos])),
            alone=reader.beginning(text.first, follow),
            system=(reader.piece(text.system[0], starts=True), closing, opening),
            agent_first=None if text.agent_first is None else reader.piece(text.agent_first, starts=True, ends=True),
            system_agent_first=reader.around(text.system_agent_first),
            follow=reader.piece(follow, starts=True),
            prompt=reader.piece(text.prompt, ends=True),
            close=reader.piece(text.close, ends=True),
            lead=text.lead,
            strips=text.strips,
        )

    def open(
        self, system: str | None, first_user: str | None, generation_prompt: bool = True
    ) -> tuple[list[int], list[int]]:
        """Ids of the system turn and of the first user turn; the last one ends with the generation prompt.

        `system` None or empty: the template's default beginning, often no ids. `first_user` None: the agent speaks
        first, the system turn ends with the generation prompt, the user's ids are empty; if the template requires a
        user, the system text takes the user's place. Raises ConfigurationError if there is then no text.
        """
        if first_user is None:
            return self._open_agent_first(system), []
        ending = self.prompt if generation_prompt else self.close
        user = (self._clean(first_user, Role.USER), *ending)
        if not system:
            return self._ids(self.alone[0]), self._ids((*self.alone[1], *user))
        before, after, opening = self.system
        return self._ids((*before, self._clean(system, Role.SYSTEM), *after)), self._ids((*opening, *user))

    def user_turn(self, text: str, after: Finish | None, generation_prompt: bool = True) -> list[int]:
        """Ids of a user's turn that follows an agent's.

        `after`: how the sampler stopped; only with `Finish.LENGTH` this turn begins with the end-of-turn token (None, for a
        logged response, does not). `generation_prompt`: False for a conversation's last turn.
        """
        ending = self.prompt if generation_prompt else self.close
        ids = self._ids((*self.follow, self._clean(text, Role.USER), *ending))
        return [self.end_of_turn, *ids] if after == Finish.LENGTH else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an agent's turn, without its end-of-turn token and other special tokens."""
        said = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return str(self.tokenizer.decode(list(said), skip_special_tokens=True)).removeprefix(self.lead)

    def encode_agent(self, text: str, finish: Finish = Finish.STOP) -> list[int]:
        """Ids of a response as the sampler would have returned it, with the end-of-turn token if it stopped there."""
        ids = encode_plain(self.plain, self.lead + self._clean(text, Role.AGENT))
        return ids if finish == Finish.LENGTH else [*ids, self.end_of_turn]

    def encode(self, conversation: Conversation) -> Conversation:
        """A copy of a text-only conversation with its `tokens` filled in; agent log-probabilities stay empty.

        A user turn is encoded as the agent sees it: `visible_text(its text, what was sent before)`. If the template has text
        before the first turn by default, a system turn with an empty text has its ids. Raises DataError
        if turns already have ids, or do not alternate after an optional system turn.
        """
        _check(conversation)
        if not conversation.turns:
            return replace(conversation, turns=[])
        told = conversation.turns[:1] if conversation.turns[0].role == Role.SYSTEM else []
        turns = conversation.turns[len(told) :]
        first = turns[0].text if turns and turns[0].role == Role.USER else None
        system_ids, first_ids = self.open(told[0].text if told else None, first, generation_prompt=len(turns) != 1)
        encoded = [replace(turn, tokens=system_ids) for turn in told or ([Turn(Role.SYSTEM, "")] if system_ids else [])]
        for index, turn in enumerate(turns):
            if turn.role == Role.AGENT:
                tokens = self.encode_agent(turn.text, turn.finish or Finish.STOP)
            elif index == 0:
                tokens = first_ids
            else:
                said = visible_text(turn.text, turns[index - 1].sent)
                tokens = self.user_turn(said, turns[index - 1].finish, generation_prompt=index + 1 < len(turns))
            encoded.append(replace(turn, tokens=tokens))
        return replace(conversation, turns=encoded)

    def owned(self, conversation: Conversation) -> Conversation:
        """The conversation with ids of this tokenizer: itself if its ids are, otherwise a copy encoded from its texts.

        They are if every agent's turn decodes to its text and the ids before it equal those of `encode`. A
        copy has no log-probabilities, because they belong to other ids. Raises DataError like `encode`.
        """
        bare = [replace(turn, tokens=[], logprobs=[], versions=[]) for turn in conversation.turns]
        encoded = self.encode(replace(conversation, turns=bare))
        if len(encoded.turns) != len(conversation.turns):
            return encoded
        before_agents = pairwise(zip(conversation.turns, encoded.turns, strict=True))
        if any(said.role == Role.AGENT and turn.tokens != own.tokens for (turn, own), (said, _) in before_agents):
            return encoded
        agents = [turn for turn in conversation.turns if turn.role == Role.AGENT]
        return conversation if all(self._spells(turn) for turn in agents) else encoded

    def _spells(self, turn: Turn) -> bool:
        size = len(self.tokenizer)
        return bool(turn.tokens) and max(turn.tokens) < size and self.decode(turn.tokens) == turn.text

    def _open_agent_first(self, system: str | None) -> list[int]:
        if system and self.system_agent_first is not None:
            before, after = self.system_agent_first
            return self._ids((*before, self._clean(system, Role.SYSTEM), *after))
        if not system and self.agent_first is not None:
            return self._ids(self.agent_first)
        if not system:
            raise ConfigurationError(
                "this model's chat template does not let an agent speak first; give the environment a system text, "
                "which then replaces the first user message, or an opening of its user"
            )
        return self._ids((*self.alone[0], *self.alone[1], self._clean(system, Role.USER), *self.prompt))

    def _clean(self, text: str, role: Role) -> str:
        return text.strip() if role in self.strips else text

    def _ids(self, piece: Piece) -> list[int]:
        """Ids of a piece; each run of ordinary text is tokenised as a whole."""
        ids: list[int] = []
        words = ""
        for part in piece:
            if isinstance(part, str):
                words += part
                continue
            if words:
                ids += encode_plain(self.plain, words)
                words = ""
            ids += part
        return ids + encode_plain(self.plain, words) if words else ids


class _Reader:
    """Converts the template's strings into pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.control = control_tokens(tokenizer)

    def piece(self, text: str, starts: bool = False, ends: bool = False) -> Piece:
        """The ids from the first control token to the last, and the ordinary text on both sides.

        `starts`, `ends`: the turn has nothing before, or after; the text on that side then becomes ids too.
        """
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        places = [index for index, token in enumerate(ids) if token in self.control]
        if not places:
            return (text,) if text else ()
        first = 0 if starts else places[0]
        last = len(ids) - 1 if ends else places[-1]
        parts: tuple[str | tuple[int, ...], ...] = (
            "" if starts else text[: offsets[first][0]],
            tuple(ids[first : last + 1]),
            "" if ends else text[offsets[last][1] :],
        )
        return tuple(part for part in parts if part)

    def around(self, texts: tuple[str, str] | None) -> tuple[Piece, Piece] | None:
        """The pieces before and after a turn's only text."""
        return None if texts is None else (self.piece(texts[0], starts=True), self.piece(texts[1], ends=True))

    def turn(self, text: TemplateText) -> tuple[int, str]:
        """The end-of-turn id, and the text after it up to the next user's. Checks that no user can forge either."""
        piece = self.piece(text.turn)
        if not piece or isinstance(piece[0], str):
            raise ConfigurationError(
                f"the chat template ends an assistant's turn with the ordinary text {text.turn[:40]!r}; the sampler "
                "needs one special token there to stop at (is the template's end token in the tokenizer?)"
            )
        if all(isinstance(part, str) for part in self.piece(text.prompt)):
            raise ConfigurationError(
                f"the chat template opens the assistant's turn with the ordinary text {text.prompt[:40]!r}, which any "
                "user can write; use a model whose roles are opened by special tokens"
            )
        name = self.control[piece[0][0]]
        return piece[0][0], text.turn[text.turn.index(name) + len(name) :]

    def cut(self, text: str, follow: str) -> tuple[Piece, Piece]:
        """The text after a system text: its end, and the user turn's opening if it has the same format as later ones."""
        if follow and text.endswith(follow):
            return self.piece(text[: -len(follow)], ends=True), self.piece(follow, starts=True)
        return self.piece(text, ends=True), ()

    def beginning(self, text: str, follow: str) -> tuple[Piece, Piece]:
        """The text before a first user text: the template's default system turn, if any, and the user turn's opening."""
        if follow and text.endswith(follow):
            return self.piece(text[: -len(follow)], starts=True, ends=True), self.piece(follow, starts=True)
        return (), self.piece(text, starts=True)


def _check(conversation: Conversation) -> None:
    roles = [turn.role for turn in conversation.turns]
    body = roles[1:] if roles[:1] == [Role.SYSTEM] else roles
    for index, turn in enumerate(conversation.turns):
        if turn.tokens:
            raise DataError(
                f"conversation {conversation.id!r}, turn {index} ({turn.role}) already has {len(turn.tokens)} token "
                "ids; only a conversation of texts is encoded"
            )
    if Role.SYSTEM in body or any(role == following for role, following in pairwise(body)):
        raise DataError(
            f"conversation {conversation.id!r}: turns have to alternate between user and agent after an optional "
            f"system turn, this one has {[str(role) for role in roles]}; join consecutive messages of one role"
        )
