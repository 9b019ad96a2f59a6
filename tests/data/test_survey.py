"""How long a run is does not decide how long one looks at it before it starts."""

import numpy as np

from swiftlet.data import cutting, survey
from swiftlet.data.cutting import Schedule
from swiftlet.data.survey import MOST_EPOCHS, largest_micro_batch


def test_a_run_of_endless_epochs_is_looked_at_for_some_of_them(monkeypatch):
    looked_at = []

    def counted(num_samples, seed, epoch):
        looked_at.append(epoch)
        return np.random.default_rng(epoch).permutation(num_samples)

    for module in (cutting, survey):
        monkeypatch.setattr(module, "epoch_order", counted)
    lengths = np.arange(10, 69, dtype=np.int32)
    endless = Schedule(seed=42, step_size=16, steps_per_epoch=3, num_steps=10**9, token_budget=256)

    largest = largest_micro_batch(lengths, endless)

    assert 0 < largest.num_tokens <= 256
    assert max(looked_at) < MOST_EPOCHS and len(looked_at) <= 2 * MOST_EPOCHS
