import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """As in nnU-Net's workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seed_everything():
    """Seeds the two global states that nnU-Net's transforms draw from."""

    def seed(number):
        np.random.seed(number)  # noqa: NPY002
        torch.manual_seed(number)

    return seed
