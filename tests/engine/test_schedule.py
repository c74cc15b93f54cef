from wsseg_ray.engine.schedule import learning_rate_at


def test_learning_rate_at():
    assert [learning_rate_at(epoch, 1.0, 2, factor=0.5) for epoch in range(5)] == [1, 1, 0.5, 0.5, 0.25]
