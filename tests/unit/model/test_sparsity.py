"""Learned sparsity of sites: what a closed site does, and that the density comes to its target."""

import pytest
import torch

from bkray.config import UserError
from bkray.config.model import SiteSparsity
from bkray.model import ResNetBK, ResNetBKConfig
from bkray.model.mixers import GatedMixer, SpectralMixer
from bkray.model.sparsity import SiteGate


@pytest.mark.parametrize("training", [True, False])
def test_a_gate_is_open_or_closed_and_starts_near_its_density(training):
    torch.manual_seed(0)
    for density in (0.2, 0.5, 0.8):
        sites = SiteGate(64, density, 1.0).train(training)
        gate = sites(torch.randn(4000, 64)).detach()
        assert set(gate.unique().tolist()) == {0.0, 1.0}
        assert abs(float(gate.mean()) - density) < 0.1


@pytest.mark.parametrize("build", [GatedMixer, lambda d, **parts: SpectralMixer(d, 2, **parts)])
def test_closed_sites_drive_nothing(build):
    torch.manual_seed(0)
    mixer = build(8, sites=SiteGate(8, 0.5, 1.0)).eval()
    torch.nn.init.normal_(mixer.output.weight)
    x = torch.randn(1, 20, 8)
    with torch.no_grad():
        mixer.sites.bias.fill_(-100.0)
        assert torch.equal(mixer(x), torch.zeros_like(x))
        mixer.sites.bias.fill_(100.0)
        opened = mixer(x)
        mixer.sites = None
        assert torch.equal(mixer(x), opened)


def test_the_penalty_takes_the_density_to_its_target():
    torch.manual_seed(0)
    sites = SiteGate(16, 0.3, 1.0)
    with torch.no_grad():
        sites.bias.fill_(1.5)
    optimizer = torch.optim.AdamW(sites.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for _ in range(400):
        sites(torch.randn(512, 16))
        opened, count = sites.site_sums["sparsity_loss"]
        sites.of_means(opened / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(float(sites(torch.randn(4096, 16)).detach().mean()) - 0.3) < 0.03


def test_the_gate_learns_from_the_models_own_loss():
    torch.manual_seed(0)
    mixer = GatedMixer(8, sites=SiteGate(8, 0.5, 1.0))
    torch.nn.init.normal_(mixer.output.weight)
    mixer(torch.randn(1, 20, 8)).square().sum().backward()
    assert mixer.sites.direction.grad.abs().sum() > 0


def test_the_density_of_all_layers_is_measured_once():
    model = ResNetBK(ResNetBKConfig(20, 16, 3, 2, sparsity=SiteSparsity()))
    model(torch.randint(20, (2, 6)))
    densities = [float(block.mixer.sites.measured["density"]) for block in model.blocks]
    assert model.measurements() == pytest.approx({"density": sum(densities) / 3})
    assert model.measurements() == {}


def test_mixers_without_a_drive_are_refused():
    with pytest.raises(
        UserError,
        match="sparsity has no effect with mixer potential",
    ):
        ResNetBKConfig(20, mixer="potential", sparsity=SiteSparsity())
