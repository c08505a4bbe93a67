import numpy as np
import torch
from torch.nn import functional as F

from bkray.config.model import ResNetBKModel
from bkray.difficulty import score_windows
from bkray.model import build_model
from bkray.selection import entropy


def test_scores_do_not_depend_on_the_batch_and_equal_their_definitions():
    torch.manual_seed(0)
    model = build_model(ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2), 50)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = np.random.default_rng(0).integers(0, 50, (7, 18)).astype(np.int32)
    together = score_windows(model, tokens, ["entropy"])
    alone = [score_windows(model, tokens[i : i + 1], ["entropy"]) for i in range(7)]
    for name, values in together.items():
        np.testing.assert_array_equal(values, np.concatenate([one[name] for one in alone]))
    batch = torch.from_numpy(tokens).long()
    with torch.no_grad():
        logits = model(batch[:, :-1])
    loss = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)
    np.testing.assert_allclose(together["loss"], loss.numpy(), rtol=1e-4)
    np.testing.assert_allclose(together["entropy"], entropy(logits).numpy(), rtol=1e-4)


def test_the_loss_of_every_token_is_of_the_same_pass():
    torch.manual_seed(0)
    model = build_model(ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2), 50)
    tokens = np.random.default_rng(0).integers(0, 50, (3, 70)).astype(np.int32)  # more than a chunk
    scores = score_windows(model, tokens, each_token=True)
    batch = torch.from_numpy(tokens).long()
    with torch.no_grad():
        logits = model(batch[:, :-1])
    expected = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
    np.testing.assert_allclose(scores["token_loss"], expected.numpy(), rtol=1e-4)
    np.testing.assert_array_equal(scores["loss"], score_windows(model, tokens)["loss"])
    assert "token_loss" not in score_windows(model, tokens)
