"""The cache holds the keys and values that transformers' own would hold."""

import torch
from transformers import DynamicCache, Qwen2Config
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from emtoolkit.evaluation.key_value_cache import with_room


def test_a_cache_with_room_holds_what_a_cache_without_it_holds() -> None:
    torch.manual_seed(0)
    ours, theirs = DynamicCache(), DynamicCache()
    prompt = torch.randn(2, 2, 5, 2, 7, 4)
    for layer in range(2):
        for cache in (ours, theirs):
            cache.update(*prompt[layer], layer)
    ours, rows = with_room(ours), 5
    # More tokens than there is room for, and rows that are dropped, doubled and put into another order.
    selections = {3: [0, 0, 1, 4], 9: [3, 1, 0], 40: [2, 0]}
    for token in range(50):
        if indices := selections.get(token):
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor(indices))
            rows = len(indices)
        for layer in range(2):
            new = torch.randn(2, rows, 2, 1, 4)
            both = [cache.update(*new, layer) for cache in (ours, theirs)]
            assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length() == 8 + token


def test_layers_of_a_sliding_window_stay_as_they_are() -> None:
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    cache = DynamicCache(config=config)
    for layer in range(2):
        cache.update(*torch.zeros(2, 4, 2, 7, 4), layer)
    kinds = [type(layer) for layer in with_room(cache).layers]
    assert kinds[0] not in (DynamicLayer, DynamicSlidingWindowLayer)
    assert kinds[1] is DynamicSlidingWindowLayer
