"""Batches from worker processes: errors in one sentence, and a killed worker has a class of its own."""

import itertools
import os
import signal

import pytest
import torch

from diffusers_ext.data.loading import LostWorkerError, load_batches
from diffusers_ext.data.own import as_training_data
from diffusers_ext.data.schedule import BatchSchedule


class Failing(torch.utils.data.Dataset):
    """Row 3 fails in the way that `failure` says."""

    def __init__(self, failure):
        self.failure = failure

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3:
            self.failure()
        return {"samples": torch.full((1, 2), index / 6)}


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(first + second)


def raised(error):
    def fail():
        raise error

    return fail


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def batches(failure, workers):
    data = as_training_data(Failing(failure))
    return load_batches(data, ([index] for index in range(6)), num_workers=workers)


@pytest.mark.parametrize("error", [ValueError("row 3 is odd"), KeyError("angle")])
def test_an_error_in_a_worker_arrives_as_it_was_raised(error):
    loaded = batches(raised(error), 1)
    assert [batch["index"].item() for batch in itertools.islice(loaded, 3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(loaded)
    assert str(caught.value) == str(error)
    assert "in fail" in str(caught.value.__cause__)


def test_an_error_that_cannot_travel_arrives_as_text():
    with pytest.raises(RuntimeError, match=r"^Unpicklable: one two$"):
        list(batches(raised(Unpicklable("one ", "two")), 1))


def test_a_killed_worker_is_an_error_of_its_own():
    with pytest.raises(LostWorkerError, match="A process that loads data was killed, most often for lack"):
        list(batches(killed, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_and_rows_load_the_same_with_any_number_of_workers(workers):
    rows = [{"samples": torch.full((1, 2), index / 6)} for index in range(6)]

    class Streamed(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    data, stream = as_training_data(rows), as_training_data(Streamed()).stream
    schedule = BatchSchedule(len(data), 2, seed=1)
    for keys, batch in itertools.islice(zip(schedule, load_batches(data, schedule, workers)), 5):
        assert torch.equal(batch["samples"], data.__getitems__(keys)["samples"])
    streamed = load_batches(stream.batches(2), num_workers=workers)
    assert [batch["index"].tolist() for batch in itertools.islice(streamed, 4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
