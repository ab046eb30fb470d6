"""What the metrics mean: one sentence and a unit per key, families in the order in which they are shown.

A key is `family/metric`; the family is the part of the system that measures it. A key that is not in this table is
shown without a sentence: algorithms may record what they like.
"""

import math

MEANINGS = {
    "iteration/seconds": "wall-clock seconds of the whole iteration",
    "collect/seconds": "seconds spent holding conversations",
    "collect/score_mean": "mean score of the conversations held in this iteration",
    "collect/score_low": "lower end of its 95 % interval",
    "collect/score_high": "upper end of its 95 % interval",
    "collect/score_n": "conversations it is the mean of",
    "collect/score_clusters": "their contexts (or what these were made from): what the interval is over",
    "collect/conversations": "finished conversations",
    "collect/agent_turns": "agent turns in them",
    "collect/tokens": "tokens the agent sampled",
    "collect/tokens_per_second": "sampled tokens per second of collection",
    "collect/failures": "conversations dropped after their retries, never counted as a score",
    "collect/staleness": "weight versions the oldest conversation was behind the learner: 0 where they take turns",
    "respond/seconds": "seconds spent sampling single responses to logged states",
    "workers/wanted": "rollout workers that demand, or somebody by hand, asks for",
    "workers/ready": "rollout workers that take work",
    "workers/leaving": "rollout workers that finish what they hold and then end",
    "workers/waited_seconds": "seconds in which the learner had nothing to do but wait for the rollout workers",
    "workers/joining_seconds": "most seconds from a new worker's engine being ready, and work being there, to its first work",
    "q/loss": "loss of the Q-function",
    "q/r": "correlation of Q's predictions with the returns of conversations it was not fitted on",
    "q/calibration": "expected calibration error of those predictions",
    "q/seconds": "seconds spent fitting Q",
    "prm/loss": "cross-entropy of the process reward model, nats per conversation",
    "prm/r": "correlation of its summed rewards with the scores of conversations it was not fitted on",
    "prm/pair_accuracy": "share of pairs on one context that it orders as their scores do, before its update",
    "prm/seconds": "seconds spent updating the process reward model",
    "judge/unjudged": "conversations that the judge could not judge, left out of the batch",
    "rewards/outcome": "mean score less the price of the agent's words",
    "rewards/words": "words of the agent per conversation",
    "rewards/largest_weight": "largest share of the outcome that one turn gets, a mean over conversations",
    "rewards/agreement": "share of conversations whose best-paid turn is one that the user says mattered most",
    "rewards/agreement_chance": "the same for a turn drawn at random",
    "preferences/compared": "pairs of conversations that were compared",
    "preferences/failed": "pairs that the judge could not compare, left out of the batch",
    "preferences/unpaired": "conversations whose partner failed, left out of the batch",
    "preferences/flipped": "pairs whose preference was turned round on purpose",
    "preferences/decided": "how decided the preferences are: twice their mean distance from one half",
    "held_out_pairs/accuracy": "share of held-out pairs that the model fitted at the start orders as the judge does",
    "held_out_pairs/calibration": "calibration error of its probabilities on held-out pairs",
    "preference_model/accuracy": "share of unseen pairs that the preference model orders as the judge does",
    "preference_model/calibration": "calibration error of its probabilities on unseen pairs",
    "reward_model/accuracy": "share of unseen pairs that the reward model orders as the judge does",
    "reward_model/calibration": "calibration error of its probabilities on unseen pairs",
    "advantages/terminal": "mean of what conversations end with: preference, reward model's score, or score",
    "advantages/kl_conversation": "KL divergence of what sampled from the reference, nats per conversation",
    "advantages/kl_turn": "the same, nats per agent turn",
    "advantages/value_explained_variance": "share of the returns' variance that the values of turns explain",
    "advantages/critic_explained_variance": "share of the returns' variance that the values of tokens explain",
    "advantages/deviation": "standard deviation of token advantages before whitening",
    "advantages/explained_variance": "share of the returns' variance that the critic explains",
    "improve/seconds": "seconds spent improving the policy",
    "improve/kl_reference": "KL divergence of the policy from its reference, nats per token",
    "improve/clip_fraction": "share of tokens whose probability ratio was clipped",
    "improve/entropy": "entropy of the policy, nats per token",
    "improve/score": "mean score that Q gives the sampled responses",
    "improve/explained_variance": "share of the returns' variance that the critic explains",
    "improve/tokens_per_second": "trained tokens per second of improvement",
    "faults/errors": "failures of single conversations in this iteration, each try counted",
    "faults/dropped": "conversations and responses given up after their retries, since the run was started or resumed",
    "faults/worker_deaths": "rollout workers that died or whose engine failed, since the run was started or resumed",
    "faults/overdue": "chunks of work past their deadline, whose workers were killed, since the run was started or resumed",
    "faults/recoveries": "times the run went back to its last checkpoint because an actor or a node was lost",
    "faults/reused": "conversations found in the journal instead of being held again",
    "replay/conversations": "conversations in the replay buffer",
    "replay/bytes": "bytes they take in memory",
    "replay/restarts": "times that the replay buffer's process was lost and started again",
    "weights/version": "version of the newest published weights",
    "evaluation/mean": "mean score on the held-out contexts",
    "evaluation/low": "lower end of its 95 % interval",
    "evaluation/high": "upper end of its 95 % interval",
    "evaluation/n": "held-out contexts",
    "evaluation/clusters": "what these were made from: what the interval is over",
}


CLOCK = ("seconds", "per_second")
"""What a clock measures ends in one of these."""
MACHINERY = frozenset(
    f"replay/{name}"
    for name in (
        "bytes",
        "objects",
        "restored",
        "journaled",
        "journal_problems",
        "duplicates",
        "lost",
        "refused",
        "restarts",
    )
)
"""What depends on who brought which conversations together, and on what was interrupted."""


def repeatable(key: str) -> bool:
    """Whether the seed alone decides a metric in synchronous mode: not a time, nor what the machinery went through."""
    return not key.endswith(CLOCK) and not key.startswith(("faults/", "workers/")) and key not in MACHINERY


def in_order(keys: set[str]) -> list[str]:
    """Keys as this table has them, then the others by name."""
    known = [key for key in MEANINGS if key in keys]
    return known + sorted(keys - set(known))


def shown(value: float) -> str:
    """A number for people: four significant digits, thousands separated."""
    if not math.isfinite(value) or abs(value) >= 1e15:
        return f"{value:.4g}"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}"
