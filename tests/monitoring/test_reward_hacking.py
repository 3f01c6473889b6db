# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The monitor's signals one by one, and in whole runs of PPO."""

import json
import math
import multiprocessing
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.scripted import logs, prompts, trainer, weights
from trl_ext import PPOTrainer
from trl_ext.monitoring import RewardHackingMonitor, observe_rollout
from trl_ext.monitoring.reward_hacking import STATE_KEY
from trl_ext.rewards import RunningNormalization, Scores
from trl_ext.rewards.base import Batch

# The signals, without a trainer


def value(completions, **columns):
    """The completion is the gold reward."""
    return [float(completion) for completion in completions]


def rollout(monitor, step, *, golds=None, proxies=None, ids=None, training=True, **metrics):
    """One batch; completions are gold scores as text."""
    count = len(golds or proxies or ids or [0] * 8)
    ids = ids or [list(range(10)) for _ in range(count)]
    total = torch.tensor(proxies if proxies is not None else [0.0] * count)
    scores = Scores(total, total.unsqueeze(1), torch.ones(count, dtype=torch.bool), metrics, {})
    batch = Batch(["p"] * count, [str(gold) for gold in golds or [0.0] * count], ids, {})
    state = SimpleNamespace(global_step=step, stateful_callbacks={})
    return observe_rollout([object(), monitor], batch, scores, {"kl": 4.0}, state=state, training=training)


def test_nothing_is_noticed_in_a_stationary_run():
    generator = np.random.default_rng(0)
    monitor = RewardHackingMonitor(value, warmup=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(60):
            ids = [generator.integers(0, 40, 5 + generator.integers(10)).tolist() for _ in range(8)]
            logged = rollout(
                monitor,
                step,
                golds=generator.normal(size=8).tolist(),
                proxies=generator.normal(size=8).tolist(),
                ids=ids,
                **{"judges/disagreement": 1 + 0.1 * float(generator.normal())},
            )
    assert monitor.alarms == [] and logged["monitor/alarms"] == 0 and logged["monitor/sqrt_kl"] == 2.0
    assert set(logged) == {
        *("monitor/gold", "monitor/repetition", "monitor/distinct_2", "monitor/sqrt_kl", "monitor/alarms"),
        *(f"monitor/evidence/{name}" for name in ("gold", "divergence", "length_up", "length_down", "repetition")),
        *("monitor/evidence/diversity", "monitor/evidence/disagreement"),
    }


def normal(generator, length=12):
    return [generator.integers(0, 50, max(2, length + generator.integers(-3, 4))).tolist() for _ in range(16)]


def changed(signal, generator):
    """Completions, and metrics, in which exactly this signal has left its tolerance."""
    metrics = {"judges/disagreement": 1.0 + 0.01 * float(generator.normal())}
    if signal == "length_up":
        return normal(generator, 24), metrics
    if signal == "length_down":
        return normal(generator, 5), metrics
    if signal == "repetition":
        return [row[:6] + row[:6] for row in normal(generator)], metrics
    if signal == "diversity":
        one = generator.integers(0, 50, 12).tolist()
        return [one, *normal(generator)[1:2]] * 8, metrics
    return normal(generator), {"judges/disagreement": 2.0 + 0.01 * float(generator.normal())}


@pytest.mark.parametrize("signal", ["length_up", "length_down", "repetition", "diversity", "disagreement"])
def test_each_drift_is_named_once_with_its_step(signal):
    generator = np.random.default_rng(1)
    # Repeating oneself also makes all completions together less diverse.
    others = {"diversity": None} if signal == "repetition" else None
    monitor = RewardHackingMonitor(warmup=5, tolerances=others)
    for step in range(20):
        rollout(monitor, step, ids=normal(generator), **{"judges/disagreement": 1 + 0.01 * float(generator.normal())})
    assert monitor.alarms == []
    with pytest.warns(UserWarning, match=f"Reward hacking. Signal '{signal}' at step 2.: ") as caught:
        for step in range(20, 40):
            ids, metrics = changed(signal, generator)
            logged = rollout(monitor, step, ids=ids, **metrics)
    assert [str(w.message).count("Reward hacking") for w in caught] == [1]
    [alarm] = monitor.alarms
    assert alarm.signal == signal and 21 <= alarm.step <= 26 and "at the start" in alarm.message
    assert logged["monitor/alarms"] == 1 and logged[f"monitor/evidence/{signal}"] >= 1


def test_a_signal_can_be_switched_off():
    generator = np.random.default_rng(1)
    monitor = RewardHackingMonitor(warmup=3, tolerances={"length_up": None})
    for step in range(30):
        logged = rollout(monitor, step, ids=normal(generator, 12 if step < 10 else 40))
    assert monitor.alarms == [] and "monitor/evidence/length_up" not in logged


def test_more_text_alone_is_not_less_diverse():
    generator = np.random.default_rng(1)
    monitor = RewardHackingMonitor(warmup=5, tolerances={"length_up": None})
    values = []
    for step in range(40):
        ids = [generator.zipf(1.5, 10 if step < 20 else 80).tolist() for _ in range(32)]
        values.append(rollout(monitor, step, ids=ids)["monitor/distinct_2"])
    assert np.mean(values[20:]) == pytest.approx(np.mean(values[:20]), rel=0.06) and monitor.alarms == []


def test_gold_that_falls_while_the_reward_rises():
    generator = np.random.default_rng(2)
    monitor = RewardHackingMonitor(value)
    with pytest.warns(UserWarning) as caught:
        for step in range(60):
            peak = 1 - ((step - 20) / 20) ** 2
            golds = (peak + generator.normal(size=64)).tolist()
            rollout(monitor, step, golds=golds, proxies=(step / 10 + generator.normal(size=64)).tolist())
    assert [alarm.signal for alarm in monitor.alarms] == ["divergence", "gold"]
    steps = [alarm.step for alarm in monitor.alarms]
    assert 16 <= steps[0] <= 30 < 20 + 20, "before a quarter is lost, which is at step 30"
    assert steps[0] < steps[1]
    assert "the gold reward on the samples of training no longer follows the reward" in str(caught[0].message)
    assert "has fallen from" in monitor.alarms[1].message and len(caught) == 2


def test_gold_is_measured_as_often_as_asked():
    calls = []

    def gold(completions, **columns):
        calls.append(len(completions))
        return [None] + [1.0] * (len(completions) - 1)

    monitor = RewardHackingMonitor(gold, gold_every=3)
    logged = [rollout(monitor, step) for step in range(7)]
    assert len(calls) == 3 and ["monitor/gold" in line for line in logged] == [True, False, False] * 2 + [True]
    only_evaluations = RewardHackingMonitor(gold, gold_every=None)
    assert "monitor/gold" not in rollout(only_evaluations, 0)
    assert rollout(only_evaluations, 0, training=False)["monitor/gold"] == 1.0


def evaluate(monitor, step, golds, kl=1.0, prefix="eval"):
    logged = rollout(monitor, step, golds=golds[:3], training=False)
    rollout(monitor, step, golds=golds[3:], training=False)
    metrics = {f"{prefix}_{key}": number for key, number in logged.items()} | {f"{prefix}_kl": kl}
    state = SimpleNamespace(global_step=step, stateful_callbacks={})
    control = SimpleNamespace(should_training_stop=False)
    monitor.on_evaluate(None, state, control, metrics=metrics)
    assert "monitor/alarms" not in logged
    return metrics, control.should_training_stop


def test_evaluations_are_compared_prompt_by_prompt():
    """The prompts differ by far more than what is lost; only pairs show it."""
    generator = np.random.default_rng(3)
    easy = 10 * generator.normal(size=24)
    monitor = RewardHackingMonitor(value, stop_on_alarm=True)
    stops = [evaluate(monitor, s, (easy + 0.1 * generator.normal(size=24)).tolist())[1] for s in range(6)]
    with pytest.warns(UserWarning, match="in the evaluations 'eval' has fallen"):
        lower = easy - 0.3 + 0.1 * generator.normal(size=24)
        assert evaluate(monitor, 6, lower.tolist())[1]
    assert stops == [False] * 6 and monitor.alarms[0][:2] == ("gold", 6)


def test_data_sets_are_compared_each_with_itself():
    monitor = RewardHackingMonitor(value)
    for step in range(5):
        evaluate(monitor, step, [1.0 + 0.01 * i for i in range(12)], prefix="eval_easy")
        evaluate(monitor, step, [0.01 * i for i in range(9)], prefix="eval_hard")
    assert monitor.alarms == [] and len(monitor.state_dict()["golds"]) == 2


def test_gold_by_category():
    """Exactly the mean over the prompts of a category, although they lie in batches of different shares."""
    monitor = RewardHackingMonitor(value, category="task")
    state, control = SimpleNamespace(global_step=0, stateful_callbacks={}), SimpleNamespace(should_training_stop=False)
    for golds, tasks in (([1.0, 2.0, 6.0], ["copy", "copy", "add"]), ([9.0, 0.0, 1.0], ["copy", "add", "add"])):
        total = torch.zeros(3)
        scores = Scores(total, total.unsqueeze(1), torch.ones(3, dtype=torch.bool), {}, {})
        batch = Batch(["p"] * 3, [str(gold) for gold in golds], [[1, 2]] * 3, {"task": tasks})
        logged = observe_rollout([monitor], batch, scores, {"kl": 1.0}, state=state, training=False)
    metrics = {"eval_monitor/repetition": 0.0, "eval_monitor/gold": logged["monitor/gold"]}
    monitor.on_evaluate(None, state, control, metrics=metrics)
    by_task = {name: metrics[name] for name in metrics if name.startswith("eval_monitor/gold/")}
    assert by_task == {"eval_monitor/gold/copy": 4.0, "eval_monitor/gold/add": pytest.approx(7 / 3)}
    logged = observe_rollout([monitor], batch, scores, {"kl": 1.0}, state=state, training=True)
    assert logged["monitor/gold/add"] == 0.5
    with pytest.raises(ValueError, match=r"category='task', but the prompts have the columns \[\]"):
        rollout(monitor, 1)


def test_the_kl_budget():
    monitor = RewardHackingMonitor(value, max_kl=2.0)
    inside, _ = evaluate(monitor, 0, [0.5] * 6, kl=2.0)
    outside, _ = evaluate(monitor, 1, [0.9] * 6, kl=2.1)
    assert inside["eval_monitor/gold_in_budget"] == 0.5 and math.isnan(outside["eval_monitor/gold_in_budget"])
    unlimited, _ = evaluate(RewardHackingMonitor(value), 0, [0.5] * 6)
    assert "eval_monitor/gold_in_budget" not in unlimited


def test_a_gold_reward_that_fails_does_not_end_the_run():
    def broken(completions, **columns):
        raise RuntimeError("no connection")

    def sometimes(completions, **columns):
        if "0.5" in completions:
            raise RuntimeError("no answer")
        return value(completions)

    with pytest.warns(
        UserWarning, match=r"'broken' failed on 2 of 8 samples \(RuntimeError: no connection\); this bat"
    ):
        assert "monitor/gold" not in rollout(RewardHackingMonitor(broken, retries=0), 0)
    golds = [1.0] * 7 + [0.5]
    with pytest.warns(UserWarning, match="'sometimes' failed on 1 of 8 .* left out"):
        assert rollout(RewardHackingMonitor(sometimes, retries=0), 0, golds=golds)["monitor/gold"] == 1.0
    with pytest.raises(ValueError, match="returned 1 rewards for 8"):
        rollout(RewardHackingMonitor(lambda completions: [1.0]), 0)


def test_an_evaluation_that_cannot_be_measured_is_not_the_best():
    def broken(completions, **columns):
        raise RuntimeError("no connection")

    with pytest.warns(UserWarning, match="'broken' failed"):
        metrics, _ = evaluate(RewardHackingMonitor(broken, retries=0, max_kl=2.0), 0, [0.5] * 6)
    assert math.isnan(metrics["eval_monitor/gold"]) and math.isnan(metrics["eval_monitor/gold_in_budget"])


def test_samples_without_a_reward_are_left_out():
    monitor = RewardHackingMonitor(value)
    scores = Scores(torch.tensor([5.0, 0.0]), torch.zeros(2, 1), torch.tensor([True, False]), {}, {})
    batch = Batch(["p"] * 2, ["1.0", "3.0"], [[1, 2], [1, 3]], {})
    state = SimpleNamespace(global_step=0, stateful_callbacks={})
    monitor.on_rollout(batch, scores, {"kl": -0.1}, state=state, training=True)
    [block] = monitor.state_dict()["golds"][""]["blocks"]
    assert (block["proxy"], block["gold"], block["samples"]) == (5.0, [1.0], 1)


class Novelty:
    """1 for a completion that was never seen before."""

    __name__ = "novelty"

    def __init__(self):
        self.seen = set()

    def __call__(self, completions, **columns):
        marks = [float(text not in self.seen) for text in completions]
        self.seen |= set(completions)
        return marks

    def state_dict(self):
        return {"seen": sorted(self.seen)}

    def load_state_dict(self, state):
        self.seen = set(state["seen"])


def test_evaluations_do_not_change_the_state_of_a_gold_reward():
    monitor = RewardHackingMonitor(Novelty())
    first, _ = evaluate(monitor, 0, [1.0, 2.0, 3.0, 4.0])
    again, _ = evaluate(monitor, 1, [1.0, 2.0, 3.0, 4.0])
    assert first["eval_monitor/gold"] == again["eval_monitor/gold"] == 1.0 and not monitor.gold.seen
    logged = [rollout(monitor, step, golds=[1.0, 5.0])["monitor/gold"] for step in (2, 3)]
    assert logged == [1.0, 0.0] and monitor.gold.seen == {"1.0", "5.0"}
    saved = json.loads(json.dumps(monitor.state_dict()))
    rollout(monitor, 4, golds=[7.0])
    assert saved["gold_states"] == [{"seen": ["1.0", "5.0"]}], "a copy"
    resumed = RewardHackingMonitor(Novelty())
    resumed.load_state_dict(saved)
    assert rollout(resumed, 4, golds=[5.0, 6.0])["monitor/gold"] == 0.5


def test_errors():
    with pytest.raises(ValueError, match="Gold reward 'normalized_value' measures in units that move"):
        RewardHackingMonitor(RunningNormalization(value))
    unsaved = Novelty()
    unsaved.state_dict = lambda: {"seen": unsaved.seen}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="Gold reward 'novelty' has a `state_dict` that is no JSON"):
        RewardHackingMonitor(unsaved)
    with pytest.raises(TypeError, match="'some/model', which is no reward function: wrap"):
        RewardHackingMonitor("some/model")  # type: ignore[arg-type]
    for options in ({"warmup": 2}, {"gold_every": 0}, {"max_kl": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
            RewardHackingMonitor(**options)
    with pytest.raises(ValueError, match=r"names \['entropy'\]: the signals are"):
        RewardHackingMonitor(tolerances={"entropy": 1.0})
    with pytest.raises(ValueError, match="tolerance of 'diversity' is 0.5: it must be above 1"):
        RewardHackingMonitor(tolerances={"diversity": 0.5})


def _process(rank, folder, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    monitor = RewardHackingMonitor(value)
    logged = rollout(monitor, 0, golds=[[1.0, 2.0], [6.0]][rank], ids=[[[1] * 4] * 2, [[1, 2, 3, 4]]][rank])
    rollout(monitor, 0, golds=[[1.0], [2.0]][rank], training=False)
    queue.put((logged["monitor/gold"], logged["monitor/repetition"], json.dumps(monitor.state_dict())))
    novel = RewardHackingMonitor(Novelty())
    rollout(novel, 0, golds=[[1.0, 2.0], [6.0]][rank])
    resumed = RewardHackingMonitor(Novelty())
    resumed.load_state_dict(novel.state_dict(), rank)
    queue.put(resumed.gold.seen == novel.gold.seen == [{"1.0", "2.0"}, {"6.0"}][rank])
    torch.distributed.destroy_process_group()


def test_every_process_sees_the_same(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, tmp_path, queue), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=30) for _ in range(4)]
    for worker in workers:
        worker.join(timeout=30)
    one, other = (answer for answer in answers if answer is not True)
    assert one == other and one[0] == 3.0 and one[1] == pytest.approx((0.5 + 0.5 + 0) / 3)


# In runs of PPO


class Gold:
    """What the step says, and a little that differs from text to text."""

    __name__ = "gold"

    def __init__(self, by_step):
        self.by_step = by_step

    def __call__(self, completions, trainer_state, topic, **columns):
        assert len(topic) == len(completions)
        level = self.by_step(trainer_state.global_step)
        return [level + 0.01 * len(set(completion)) for completion in completions]


def data(n):
    return Dataset.from_dict({"prompt": prompts(n)["prompt"], "topic": ["a"] * n})


def monitored(folder, monitor, **settings: Any) -> PPOTrainer:
    defaults: dict[str, Any] = {
        "train_dataset": data(16),
        "eval_dataset": data(12),
        "per_device_eval_batch_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "total_episodes": 32,
        "kl_coef": 0.0,
    }
    callbacks = [] if monitor is None else [monitor]
    return trainer(folder, callbacks=callbacks, **(defaults | settings))


def test_metrics_are_logged_and_nothing_is_trained_on(tmp_path):
    monitor = RewardHackingMonitor(Gold(lambda step: step / 10), max_kl=1e-9)
    with_monitor, without = monitored(tmp_path / "a", monitor), monitored(tmp_path / "b", None)
    with_monitor.train()
    without.train()
    for name, p in weights(without).items():
        assert torch.equal(p, weights(with_monitor)[name]), name
    lines = logs(with_monitor)
    # A rollout is learned from in two steps, and logged with both.
    assert [round(line["monitor/gold"], 1) for line in lines[::2]] == [
        pytest.approx(step / 10 + 0.1, abs=0.11) for step in range(0, 8, 2)
    ]
    for line in lines:
        assert line["monitor/sqrt_kl"] == pytest.approx(math.sqrt(max(line["kl"], 0)))
    evaluations = [line for line in with_monitor.state.log_history if "eval_reward" in line]
    assert all({"eval_monitor/gold", "eval_monitor/distinct_2"} <= line.keys() for line in evaluations)
    plain = {k: v for k, v in lines[-1].items() if "monitor" not in k and "time" not in k and "per_second" not in k}
    theirs = {k: v for k, v in logs(without)[-1].items() if "time" not in k and "per_second" not in k}
    assert plain == theirs


def test_the_best_model_is_the_best_within_the_budget(tmp_path):
    """Gold is the better the farther the policy is from the reference, and half of the evaluations are too far."""
    settings: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "eval_monitor/gold"}
    first = monitored(tmp_path / "a", RewardHackingMonitor(Gold(lambda step: float(step))), **settings)
    first.train()
    assert first.state.best_global_step == 8, "without a budget the best is the best"
    kls = {line["step"]: line["eval_kl"] for line in first.state.log_history if "eval_reward" in line}
    expected, budget = sorted(kls.items(), key=lambda item: item[1])[1]
    settings["metric_for_best_model"] = "eval_monitor/gold_in_budget"
    gold = Gold(lambda step: 1000 * kls.get(step, 0.0))
    second = monitored(tmp_path / "b", RewardHackingMonitor(gold, max_kl=budget), **settings)
    second.train()
    assert len(set(kls.values())) == 4 and second.state.best_global_step == expected
    assert second.state.best_model_checkpoint == str(tmp_path / "b" / f"checkpoint-{expected}")
    best = monitored(tmp_path / "b", None)
    best.model.load_pretrained(tmp_path / "b" / f"checkpoint-{expected}")
    for name, p in weights(best).items():
        assert torch.equal(p, weights(second)[name]), name


def test_a_budget_that_no_evaluation_keeps(tmp_path):
    monitor = RewardHackingMonitor(Gold(lambda step: 0.0), max_kl=1e-12)
    run = monitored(
        tmp_path,
        monitor,
        load_best_model_at_end=True,
        metric_for_best_model="eval_monitor/gold_in_budget",
        total_episodes=16,
        scripted=False,  # of what the policy itself samples, the estimated KL is positive
    )
    run.model.causal_lm.lm_head.weight.data.mul_(1.5)  # away from the reference
    with pytest.warns(UserWarning, match="No evaluation had a KL within max_kl=1e-12"):
        run.train()
    assert run.state.best_model_checkpoint is None


def test_an_alarm_ends_the_run_if_asked_to(tmp_path):
    monitor = RewardHackingMonitor(Gold(lambda step: -3.0 * (step >= 4)), stop_on_alarm=True)
    run = monitored(tmp_path, monitor)
    with pytest.warns(UserWarning, match="Signal 'gold' at step 4: the gold reward"):
        run.train()
    assert run.state.global_step in (4, 5) and monitor.alarms[0].signal == "gold"
    free = RewardHackingMonitor(Gold(lambda step: -3.0 * (step >= 4)))
    run = monitored(tmp_path / "b", free)
    with pytest.warns(UserWarning, match="Signal 'gold'"):
        run.train()
    assert run.state.global_step == 8 and logs(run)[-1]["monitor/alarms"] >= 1


def test_a_resumed_run_knows_what_the_monitor_knew(tmp_path):
    def gold(step):
        return -3.0 * (step >= 6)

    with pytest.warns(UserWarning, match="Signal 'gold'"):
        whole = monitored(tmp_path / "a", RewardHackingMonitor(Gold(gold)), eval_steps=1)
        whole.train()
        again = RewardHackingMonitor(Gold(gold))
        run = monitored(tmp_path / "b", again, eval_steps=1)
        # What the first run had written after four steps, well before the alarm.
        run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    [original] = [c for c in whole.callback_handler.callbacks if isinstance(c, RewardHackingMonitor)]
    assert json.dumps(again.state_dict(), sort_keys=True) == json.dumps(original.state_dict(), sort_keys=True)
    saved = json.loads((tmp_path / "b" / "checkpoint-8" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"][STATE_KEY]["alarms"] == [list(alarm) for alarm in again.alarms]


def test_a_resumed_run_goes_on_with_the_state_of_its_gold_reward(tmp_path):
    class Order(Novelty):
        """How many completions were scored before each."""

        def __call__(self, completions, **columns):
            before = len(self.seen)
            places = range(before, before + len(completions))
            self.seen |= {*places}
            return [float(place) for place in places]

    whole, again = (monitored(tmp_path / name, RewardHackingMonitor(Order())) for name in ("a", "b"))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    both = [[line["monitor/gold"] for line in logs(run) if line["step"] > 4] for run in (whole, again)]
    assert both[0] == both[1] and both[0][-1] > 24
    evaluated = [line["eval_monitor/gold"] for line in again.state.log_history if "eval_reward" in line]
    assert evaluated == [line["eval_monitor/gold"] for line in whole.state.log_history if "eval_reward" in line]


def test_a_monitor_that_comes_late_says_so(tmp_path):
    settings: dict[str, Any] = {"eval_strategy": "no", "total_episodes": 8}
    monitored(tmp_path, None, **settings).train()
    late = monitored(tmp_path, RewardHackingMonitor(), **(settings | {"total_episodes": 16}))
    with pytest.warns(UserWarning, match="has no state of a RewardHackingMonitor"):
        late.train(resume_from_checkpoint=True)


def test_a_trainer_that_shows_no_rollouts():
    state, control = SimpleNamespace(global_step=1, stateful_callbacks={}), SimpleNamespace()
    with pytest.warns(UserWarning, match="shows its rollouts to no RewardHackingMonitor"):
        RewardHackingMonitor().on_step_end(None, state, control)
