"""Threads, the interpreter's lock, and forks."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import exact_fp4 as fp4


@pytest.fixture
def all_threads():
    yield
    fp4.set_threads(0)


def test_any_number_of_threads_gives_the_same_bits(rng, all_threads):
    layer = fp4.Layer.from_dense(rng.normal(size=(96, 256)).astype(np.float32))
    x = rng.normal(size=(65, 256)).astype(np.float32)
    expected = layer(x)
    for threads in (1, 2, 3, 7):
        fp4.set_threads(threads)
        assert fp4.threads() == threads
        np.testing.assert_array_equal(layer(x).view(np.uint32), expected.view(np.uint32))


def test_many_threads_call_one_layer(rng):
    layer = fp4.Layer.from_dense(rng.normal(size=(64, 128)).astype(np.float32), "mxfp4")
    inputs = [rng.normal(size=(i + 1, 128)).astype(np.float32) for i in range(8)]
    expected = [layer(x) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(20):
            if not np.array_equal(layer(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_run_during_a_call(rng):
    layer = fp4.Layer.from_dense(rng.normal(size=(2048, 2048)).astype(np.float32))
    layer = layer.with_backends("reference", "reference")
    x = rng.normal(size=(2, 2048)).astype(np.float32)
    ran, done = 0, threading.Event()

    def call():
        layer(x)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not done.is_set():
        ran += 1
        time.sleep(0.001)
    thread.join()
    # Were the lock held, this thread would not have come to count.
    assert ran > 5, ran


def test_threads_come_and_go_while_calls_run(rng, all_threads):
    layer = fp4.Layer.from_dense(rng.normal(size=(64, 128)).astype(np.float32))
    x = rng.normal(size=(9, 128)).astype(np.float32)
    expected, wrong, stop = layer(x), [], threading.Event()

    def work():
        while not stop.is_set():
            if not np.array_equal(layer(x), expected):
                wrong.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    for threads in (1, 2, 3) * 5:
        fp4.set_threads(threads)
    stop.set()
    thread.join()
    assert not wrong


FORK = """
import os, sys, threading, warnings
import numpy as np
import exact_fp4 as fp4
warnings.simplefilter("ignore", DeprecationWarning)
rng = np.random.default_rng(1)
layer = fp4.Layer.from_dense(rng.normal(size=(64, 128)).astype(np.float32))
x = rng.normal(size=(9, 128)).astype(np.float32)
expected = layer(x)
stop = threading.Event()
def work():
    while not stop.is_set():
        layer(x)
thread = threading.Thread(target=work)
thread.start()
failed = 0
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(layer(x), expected) else 1)
    failed += os.waitpid(pid, 0)[1] != 0
stop.set()
thread.join()
assert np.array_equal(layer(x), expected)
sys.exit(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_while_the_parent_does():
    run = subprocess.run([sys.executable, "-c", FORK], timeout=120, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_input_is_held_while_a_call_reads_it(rng):
    layer = fp4.Layer.from_dense(rng.normal(size=(512, 1024)).astype(np.float32))
    expected = layer(np.ones((64, 1024), np.float32))
    for _ in range(20):
        # Nobody but the call holds these arrays.
        np.testing.assert_array_equal(layer(np.ones((64, 1024), np.float32)), expected)
