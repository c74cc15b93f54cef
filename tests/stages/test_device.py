import numpy as np
import torch

from wsseg_ray.stages.device import arrays_of


def test_arrays_have_the_shapes_and_values_of_the_tensors():
    tensors = [torch.arange(6).view(2, 3).half(), torch.zeros(0, 4).half(), torch.ones(3).half()[::2]]
    found = arrays_of(tensors)
    assert [own.shape for own in found] == [(2, 3), (0, 4), (2,)] and found[0].dtype == np.float16
    assert found[0].tolist() == [[0, 1, 2], [3, 4, 5]] and found[2].tolist() == [1, 1]
    assert arrays_of([]) == []
