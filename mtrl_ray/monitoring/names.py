"""Descriptions of the metrics: one sentence and a unit per key, in display order.

A key is `family/metric`; the family is the part of the system that measures it. Keys that are not in this table are
shown without a description, because algorithms can record any metric.
"""

import math

MEANINGS = {
    "iteration/seconds": "wall-clock seconds of the whole iteration",
    "collect/seconds": "seconds spent on rollouts of conversations",
    "collect/score_mean": "mean score of the conversations collected in this iteration",
    "collect/score_low": "lower end of its 95 % interval",
    "collect/score_high": "upper end of its 95 % interval",
    "collect/score_n": "number of conversations in the mean",
    "collect/score_clusters": "independent clusters of the interval: their contexts, or the sources of these",
    "collect/conversations": "finished conversations, branches included",
    "collect/agent_turns": "agent turns in them",
    "collect/tokens": "tokens the agent sampled",
    "collect/tokens_per_second": "sampled tokens per second of collection",
    "collect/answer_tokens": "mean tokens of the agent's answers",
    "collect/answer_tokens_p95": "95th percentile of the same",
    "collect/truncated": "share of the agent's turns that ended at the token limit; they are learned from as they are",
    "collect/stop_outcome": "share of conversations that ended with the event the environment is about",
    "collect/stop_user_left": "share that the user ended without it",
    "collect/stop_turn_limit": "share that ended at the environment's limit of turns",
    "collect/stop_token_limit": "share that the context window cut off; Q does not take them for ended",
    "collect/stop_logged": "share of imported conversations whose end the log does not explain",
    "collect/failures": "conversations dropped after their retries, never counted as a score",
    "collect/staleness": "weight versions of the oldest conversation behind the learner: 0 in synchronous mode",
    "branch/conversations": "conversations that were continued anew from a logged state",
    "branch/score_mean": "their mean score",
    "branch/failures": "branches dropped after their retries",
    "branch/seconds": "seconds spent on them",
    "respond/seconds": "seconds spent sampling single responses to logged states",
    "respond/distinct": "mean number of different answers among those sampled in a state",
    "respond/alike": "share of states in which all sampled answers are alike, so that there is nothing to choose",
    "respond/answer_tokens": "mean tokens of the sampled answers",
    "respond/answer_tokens_p95": "95th percentile of the same",
    "respond/truncated": "share of them that ended at the token limit",
    "ranking/rank_correlation": "Spearman's ρ of Q and the outcomes of continued answers within a state, mean over states",
    "ranking/gain": "score of the answer Q likes best, continued, less the mean of its state: what choosing by Q gains",
    "ranking/gain_low": "lower end of its 95 % interval",
    "ranking/gain_high": "upper end of its 95 % interval",
    "ranking/best_gain": "the same for choosing by three continuations of each answer: a lower bound of what can be gained",
    "ranking/top_1": "share of states in which the answer Q likes best is above the mean, equal counts half",
    "ranking/slope": "score per unit of Q within states; 1 if differences of Q are worth what they say, 0 if they are noise",
    "ranking/states": "states whose answers were ranked",
    "ranking/ranked_states": "of these, states whose outcomes differ and so have ranks",
    "ranking/answers": "answers that were continued",
    "ranking/conversations": "conversations that were continued for it; they are no training data",
    "ranking/seconds": "seconds spent continuing them",
    "workers/wanted": "requested rollout workers, by demand or by hand",
    "workers/ready": "rollout workers that accept work",
    "workers/leaving": "rollout workers that finish their current work and then end",
    "workers/waited_seconds": "seconds that the learner waited for rollout workers",
    "workers/joining_seconds": "largest delay of a new worker's first work, in seconds after its engine was ready",
    "q/loss": "loss of the Q-function",
    "q/r": "correlation of Q's predictions with the returns of conversations it was not fitted on",
    "q/calibration": "expected calibration error of those predictions",
    "q/seconds": "seconds spent fitting Q",
    "q/value_r": "the same correlation of V, which knows the state alone",
    "q/within_r": "correlation of Q's advantages with what V leaves of the return, on conversations they were not fitted on",
    "q/sharpening": "by how many deviations of the advantage an answer is better per nat that it is likelier; 0: not surely",
    "improve/entropy_bonus": "weight of the entropy in the loss; below 0 the policy is sharpened",
    "q/confidence": "how sure it is that Q ranks answers at all, 0 to 1: the weight of its answers in the improvement",
    "q/penalty": "penalty of the ridge regression that cross-validation chose, in units of the number of features",
    "improve/logged_deviation": "deviation of the advantages of what was said, in units of the score",
    "prm/loss": "cross-entropy of the process reward model, nats per conversation",
    "prm/r": "correlation of its summed rewards with the scores of conversations it was not fitted on",
    "prm/pair_accuracy": "fraction of pairs on one context that it orders like their scores, before its update",
    "prm/seconds": "seconds spent updating the process reward model",
    "judge/unjudged": "conversations that the judge could not judge, excluded from the batch",
    "rewards/outcome": "mean score minus the penalties for words or overlong answers",
    "rewards/overlong": "fraction of the agent's answers cut at the token limit or by the context window",
    "rewards/environment": "mean sum of the environment's own rewards of turns; the scheme `environment` learns from it",
    "rewards/words": "words of the agent per conversation",
    "rewards/largest_weight": "largest fraction of the outcome that one turn gets, mean over conversations",
    "rewards/agreement": "fraction of conversations whose turn with the largest reward is a key turn according to the user",
    "rewards/agreement_chance": "the same for a turn drawn at random",
    "preferences/compared": "pairs of conversations that were compared",
    "preferences/failed": "pairs that the judge could not compare, excluded from the batch",
    "preferences/unpaired": "conversations whose partner failed, excluded from the batch",
    "preferences/too_long": "conversations or responses that the model of preferences could not read, excluded from the batch",
    "preferences/flipped": "pairs whose preference was flipped as label noise",
    "preferences/decided": "decisiveness of the preferences: twice their mean distance from one half",
    "held_out_pairs/accuracy": "fraction of held-out pairs that the model fitted at the start orders like the judge",
    "held_out_pairs/calibration": "calibration error of its probabilities on held-out pairs",
    "preference_model/accuracy": "fraction of unseen pairs that the preference model orders like the judge",
    "preference_model/calibration": "calibration error of its probabilities on unseen pairs",
    "reward_model/accuracy": "fraction of unseen pairs that the reward model orders like the judge",
    "reward_model/calibration": "calibration error of its probabilities on unseen pairs",
    "advantages/alpha": "weight of the KL to the initial policy, in units of the terminal reward per nat",
    "advantages/terminal": "mean terminal reward: preference, output of the reward model, or score",
    "advantages/kl_conversation": "KL divergence of the sampling policy from the reference, nats per conversation",
    "advantages/kl_turn": "the same, nats per agent turn",
    "advantages/value_explained_variance": "fraction of the returns' variance that the values of turns explain",
    "advantages/critic_explained_variance": "fraction of the returns' variance that the values of tokens explain",
    "advantages/signal": "their deviation in hundredths of the score, at most 1; below 1 outcomes hardly vary and steps shrink",
    "advantages/deviation": "standard deviation of token advantages before whitening",
    "advantages/explained_variance": "fraction of the returns' variance that the critic explains",
    "futures/pairs": "pairs of continuations that part ways in one state",
    "futures/alike": "branches that said the same as their conversation to the end, left out",
    "improve/loss": "squared error of REFUEL's regression, in squared units of the score",
    "improve/explained": "fraction of the squared differences of returns that the last pass of the regression explained",
    "improve/seconds": "seconds spent improving the policy",
    "improve/kl_reference": "KL divergence of the policy from its reference, nats per token",
    "improve/kl_update": "distance of the whole update, KL from the policy before to the one after it, nats per token",
    "improve/step_fraction": "share of the update's way that was kept; below 1 it went too far and was shortened",
    "improve/clip_fraction": "fraction of tokens whose probability ratio was clipped",
    "improve/entropy": "entropy of the policy, nats per token",
    "improve/score": "mean score that Q gives the sampled responses",
    "improve/score_within": "deviation of Q's scores within a state: what advantages are made of",
    "improve/score_between": "share of their variance that lies between states, which a baseline removes",
    "improve/explained_variance": "fraction of the returns' variance that the critic explains",
    "improve/tokens_per_second": "trained tokens per second of improvement",
    "faults/errors": "failures of single conversations in this iteration, including retries",
    "faults/dropped": "conversations and responses given up after their retries, since the run started or resumed",
    "faults/worker_deaths": "rollout workers that died or whose engine failed, since the run started or resumed",
    "faults/overdue": "chunks of work past their deadline, whose workers were killed, since the run started or resumed",
    "faults/recoveries": "restarts from the last checkpoint after a lost actor or node",
    "faults/reused": "conversations reused from the journal instead of a new rollout",
    "replay/conversations": "conversations in the replay buffer",
    "replay/bytes": "bytes of memory they use",
    "replay/restarts": "restarts of the replay buffer's process after a loss",
    "weights/version": "version of the newest published weights",
    "evaluation/mean": "mean score on the held-out contexts",
    "evaluation/low": "lower end of its 95 % interval",
    "evaluation/high": "upper end of its 95 % interval",
    "evaluation/n": "held-out contexts",
    "evaluation/clusters": "independent clusters of the interval: the sources of the contexts",
}


CLOCK = ("seconds", "per_second")
"""Suffixes of metrics that a clock measures."""
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
"""Metrics that depend on the scheduling of conversations and on interruptions."""


def repeatable(key: str) -> bool:
    """Whether the seed determines a metric in synchronous mode; times and scheduling metrics are not repeatable."""
    return not key.endswith(CLOCK) and not key.startswith(("faults/", "workers/")) and key not in MACHINERY


def in_order(keys: set[str]) -> list[str]:
    """Keys in the order of this table, then the others by name."""
    known = [key for key in MEANINGS if key in keys]
    return known + sorted(keys - set(known))


def shown(value: float) -> str:
    """A number as text: four significant digits, thousands separated."""
    if not math.isfinite(value) or abs(value) >= 1e15:
        return f"{value:.4g}"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}"
