"""The recorder: real files, torn lines, rewinding, TensorBoard's events, Ray's metrics endpoint."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mtrl_ray.errors import DataError, EngineError
from mtrl_ray.monitoring import recorder as recorder_module
from mtrl_ray.monitoring.recorder import FILE, Recorder, gauge_name, read_metrics
from tests.support.disk import no_file_over

SCRAPE_SECONDS = 90


def filled(folder, iterations=3):
    with Recorder(folder, "run", tensorboard=False) as recorder:
        for iteration in range(1, iterations + 1):
            recorder.record(iteration, {"q/r": iteration / 10})
    return folder


def iterations_in(folder):
    return [row["iteration"] for row in read_metrics(folder)]


def test_every_iteration_is_one_line_that_is_there_at_once(tmp_path):
    recorder = Recorder(tmp_path / "deep" / "run", "run", tensorboard=False)
    recorder.record(1, {"collect/conversations": 256, "q/r": np.float32(0.5), "improve/kl_reference": 0.01})
    rows = read_metrics(tmp_path / "deep" / "run")
    assert rows == [{"iteration": 1, "collect/conversations": 256, "q/r": 0.5, "improve/kl_reference": 0.01}]
    recorder.close()
    recorder.record(2, {"q/r": 0.6})
    recorder.close()
    assert iterations_in(tmp_path / "deep" / "run") == [1, 2]


def test_what_is_not_finite_becomes_null_and_keeps_its_key(tmp_path):
    with Recorder(tmp_path, "run", tensorboard=False) as recorder:
        recorder.record(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0, "e": None})
    line = (tmp_path / FILE).read_text()
    assert json.loads(line) == {"iteration": 1, "a": None, "b": None, "c": None, "d": 1.0, "e": None}
    assert "NaN" not in line


def test_nothing_recorded_is_an_empty_list(tmp_path):
    assert read_metrics(tmp_path) == []
    Recorder(tmp_path, "run", tensorboard=False).rewind(3)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("metrics", [{"q/r": "much"}, {"q/r": [1]}, {"iteration": 3.0}])
def test_what_is_no_metric_is_refused_and_leaves_no_line(tmp_path, metrics):
    with Recorder(tmp_path, "run", tensorboard=False) as recorder:
        with pytest.raises(DataError, match="metric"):
            recorder.record(1, metrics)
        recorder.record(1, {"q/r": 0.1})
    assert iterations_in(tmp_path) == [1]


@pytest.mark.parametrize("torn", [b'{"iteration": 4, "q/', b'{"iteration": 4}', b"\xff\xfe"])
def test_a_torn_last_line_is_not_read_and_gone_before_the_next(tmp_path, torn):
    path = filled(tmp_path) / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert iterations_in(tmp_path) == [1, 2, 3]
    with Recorder(tmp_path, "run", tensorboard=False) as recorder:
        assert path.read_bytes() == whole
        recorder.record(4, {"q/r": 0.4})
    assert iterations_in(tmp_path) == [1, 2, 3, 4]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = filled(tmp_path) / FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "no json", lines[2]]) + "\n")
    with pytest.raises(DataError, match="line 2 cannot be read"):
        read_metrics(tmp_path)


def test_rewinding_cuts_exactly_what_came_after(tmp_path):
    path = filled(tmp_path, 5) / FILE
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    path.write_bytes(path.read_bytes() + b'{"iteration": 6, "q')
    with Recorder(tmp_path, "run", tensorboard=False) as recorder:
        recorder.record(6, {"q/r": 0.6})
        recorder.rewind(2)
        assert path.read_bytes() == kept
        recorder.record(3, {"q/r": 0.33})
    assert iterations_in(tmp_path) == [1, 2, 3]
    assert read_metrics(tmp_path)[-1]["q/r"] == 0.33
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE]


def test_rewinding_to_a_checkpoint_brings_back_what_a_crash_took(tmp_path):
    path = filled(tmp_path / "run", 3) / FILE
    whole = path.read_bytes()
    (tmp_path / "kept").mkdir()
    with Recorder(tmp_path / "run", "run", tensorboard=False) as recorder:
        recorder.keep(tmp_path / "kept")
        recorder.record(4, {"q/r": 0.4})
        recorder.rewind(3, tmp_path / "kept")
        assert path.read_bytes() == whole
    path.write_bytes(whole[:40])
    with Recorder(tmp_path / "run", "run", tensorboard=False) as recorder:
        recorder.rewind(3, tmp_path / "kept")
        assert path.read_bytes() == whole
        path.unlink()
        recorder.rewind(3, tmp_path / "kept")
        recorder.record(4, {"q/r": 0.44})
        recorder.rewind(3, tmp_path)
    assert iterations_in(tmp_path / "run") == [1, 2, 3], "a folder without metrics brings nothing back"


def test_a_rewind_that_cannot_replace_the_file_leaves_it_whole(tmp_path, monkeypatch):
    path = filled(tmp_path, 5) / FILE
    before = path.read_bytes()
    recorder = Recorder(tmp_path, "run", tensorboard=False)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=rf"{path} could not be written: no space is left there; free space"):
        recorder.rewind(2)
    assert path.read_bytes() == before


def test_a_full_disk_is_one_sentence_and_the_file_is_whole_again_when_there_is_room(tmp_path):
    path = filled(tmp_path) / FILE
    whole = path.read_bytes()
    recorder = Recorder(tmp_path, "run", tensorboard=False)
    with no_file_over(len(whole) + 5):
        for _ in range(2):
            with pytest.raises(EngineError, match=rf"{path} could not be written: .*File too large; free space"):
                recorder.record(4, {"q/r": 0.4})
    assert path.read_bytes() == whole + b'{"ite'
    recorder.rewind(3)
    recorder.record(4, {"q/r": 0.4})
    recorder.close()
    assert path.read_bytes().startswith(whole) and iterations_in(tmp_path) == [1, 2, 3, 4]


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_refuses_tensorboards_events_neither_stops_a_run_nor_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "FLUSH_SECONDS", 0)
    recorder = Recorder(tmp_path, "run")
    with no_file_over(3000):
        for iteration in range(1, 16):
            recorder.record(iteration, {f"q/{number}": 0.1 for number in range(10)})
        recorder.close()
    assert iterations_in(tmp_path) == list(range(1, 16))
    recorder.record(16, {"q/r": 0.16})
    recorder.close()
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [event.step for event in events(newest) if event.summary.value] == [16]


def test_a_killed_process_loses_no_recorded_iteration(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from mtrl_ray.monitoring.recorder import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]), 'run', tensorboard=False)\n"
        "for i in range(1, 51): recorder.record(i, {'q/r': 0.1})\n"
        "sys.stdout.write('recorded\\n'); sys.stdout.flush(); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "recorded\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
    assert iterations_in(tmp_path) == list(range(1, 51))


def events(path):
    """The events of one TensorBoard file: records of length, checksum, bytes, checksum."""
    content, found, at = path.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event()
        event.ParseFromString(content[at + 12 : at + 12 + length])
        found.append(event)
        at += 16 + length
    return found


def test_tensorboard_shows_the_metrics_and_forgets_what_was_rewound(tmp_path):
    with Recorder(tmp_path, "run") as recorder:
        for iteration in (1, 2, 3):
            recorder.record(iteration, {"q/r": iteration / 10, "q/loss": math.nan})
        recorder.rewind(1)
        recorder.record(2, {"q/r": 0.9})
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    values = {(event.step, value.tag): value.simple_value for event in events(first) for value in event.summary.value}
    assert values == pytest.approx({(1, "q/r"): 0.1, (2, "q/r"): 0.2, (3, "q/r"): 0.3})
    later = events(second)
    # tensorboard's rule: a START of a session at step s makes it forget every earlier event with a step >= s.
    assert [event.step for event in later if event.session_log.status == 1] == [2]
    assert [(event.step, event.summary.value[0].simple_value) for event in later if event.summary.value] == [
        (2, pytest.approx(0.9))
    ]


def test_gauge_names_are_valid_for_prometheus():
    assert gauge_name("collect/tokens_per_second") == "mtrl_collect_tokens_per_second"
    assert gauge_name("q/r (held-out)") == "mtrl_q_r_held_out"


def test_without_ray_running_there_are_no_gauges_and_no_complaint(tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with Recorder(tmp_path, "run", tensorboard=False) as recorder:
        recorder.record(1, {"q/r": 0.5})
    assert iterations_in(tmp_path) == [1]


def scraped(port):
    """The run's gauges as Prometheus would read them now; empty while the endpoint is not up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    ours = [line for line in lines if line.startswith("ray_mtrl_") and 'run="bright-lamp"' in line]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in ours}


def wait_for(port, expected):
    deadline = time.monotonic() + SCRAPE_SECONDS
    while (found := scraped(port)) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == expected


def test_ray_serves_the_metrics_to_prometheus(tmp_path, ray_cluster):
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    both = {"ray_mtrl_collect_score_mean": 0.375, "ray_mtrl_q_r": 0.5}
    with Recorder(tmp_path, "bright-lamp", tensorboard=False) as recorder:
        recorder.record(1, {"collect/score_mean": 0.375, "q/r": 0.5})
        wait_for(port, both)
        recorder.record(2, {"q/r": math.nan})
        # By the time Ray has dropped the gauge that ended, it would have dropped one that was set only once as well.
        wait_for(port, {"ray_mtrl_collect_score_mean": 0.375})
    assert not [thread for thread in threading.enumerate() if thread.name == "mtrl-gauges"]
