"""What a teacher says and what a student learns of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pocket_vit import SIZE, pocket_vit

from aivsreal.runtime.networks.arch import network_from_arch
from aivsreal.runtime.networks.mapped import logits_from_output
from aivsreal.runtime.spec import PreprocessSpec
from aivsreal.train.config import DistilConfig
from aivsreal.train.fit.distil import Learner, Lesson, Lessons, Teacher, distillation_loss
from aivsreal.train.fit.features import Features
from aivsreal.train.fit.probe import CrossFitted

ALL = DistilConfig(labels=0.5, logits=1.0, features=1.0, tokens=0.5, components=8)


def _batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, SIZE, SIZE, generator=random) for _ in range(count)]


def _teacher(components: int, batches: list[torch.Tensor]) -> Teacher:
    teacher = Teacher(pocket_vit(), PreprocessSpec(SIZE), DistilConfig(components=components))
    teacher.fit(iter(batches))
    return teacher


@torch.no_grad()
def test_a_lesson_is_standardised_on_what_it_was_fitted_on() -> None:
    batches = _batches(8)
    teacher = _teacher(8, batches)
    lessons = [teacher(batch_BCHW) for batch_BCHW in batches]
    components_NC = torch.cat([lesson.components_BC for lesson in lessons])
    assert components_NC.mean(0).abs().max() < 1e-3
    assert components_NC.square().mean() == pytest.approx(1, abs=1e-3)
    spread_C = components_NC.std(0)
    assert (spread_C[:-1] >= spread_C[1:] - 1e-3).all(), "large components stay large"
    assert spread_C[0] > 1.1 * spread_C[-1]
    for which in (0, 1):
        tokens = torch.cat([lesson.tokens[which] for lesson in lessons])
        assert tokens.shape == (64, 32, 4, 4)
        assert tokens.mean((0, 2, 3)).abs().max() < 1e-3
        torch.testing.assert_close(tokens.std((0, 2, 3)), torch.ones(32), atol=1e-2, rtol=0)
    asked = teacher.network(batches[0])
    torch.testing.assert_close(lessons[0].soft_B, (logits_from_output(asked) / 2).sigmoid())


@torch.no_grad()
def test_more_components_than_images_leave_the_rest_empty() -> None:
    batches = _batches(1)
    lesson = _teacher(20, batches)(batches[0])
    assert lesson.components_BC.shape == (8, 20)
    assert torch.isfinite(lesson.components_BC).all()
    assert (lesson.components_BC[:, 8:] == 0).all()
    assert lesson.components_BC[:, :7].abs().max() > 0.1


def test_the_loss_counts_only_what_the_configuration_names() -> None:
    random = torch.Generator().manual_seed(0)
    logits_B, components_BC = torch.randn(8, generator=random), torch.randn(8, 8, generator=random)
    grids = tuple(torch.randn(8, 32, 4, 4, generator=random) for _ in range(2))
    tokens = [torch.zeros(8, 16, 32), torch.zeros(8, 4, 32)]
    lesson = Lesson(((logits_B + 1) / 2).sigmoid(), components_BC * 0.5, (grids[0], grids[1]))

    def loss(config: DistilConfig, logits_B: torch.Tensor = logits_B) -> float:
        return float(distillation_loss(logits_B, components_BC, tokens, lesson, config))

    assert loss(DistilConfig()) == 0
    pooled = torch.nn.functional.avg_pool2d(grids[1], 2)
    wanted = (grids[0].square().mean() + pooled.square().mean()) / 2
    assert loss(DistilConfig(tokens=1.0)) == pytest.approx(float(wanted), rel=1e-5)
    assert loss(DistilConfig(features=2.0)) == pytest.approx(2 * float((components_BC * 0.5).square().mean()), rel=1e-5)
    soft = DistilConfig(logits=1.0)
    assert loss(soft, logits_B + 1) < loss(soft), "a student that says what the teacher says has least to learn"
    assert loss(soft, logits_B + 1) < loss(soft, logits_B + 2)


@torch.no_grad()
def test_heads_that_do_not_know_an_image_judge_it_in_the_teachers_place() -> None:
    batches = _batches(8)
    teacher = _teacher(8, batches)
    own = teacher(batches[0])
    features_BF, _ = teacher.network.features(batches[0])
    torch.manual_seed(0)
    teacher.others = CrossFitted(features_BF.shape[1], 3)
    logits_BK = torch.stack([head.logits(features_BF, 0.0) for head in teacher.others.heads], dim=1)
    share_BK = torch.eye(3)[torch.arange(8) % 3]
    share_BK[7] = torch.tensor([0.25, 0.0, 0.75])  # cut from two images
    lesson = teacher(batches[0], share_BK)
    wanted_B = logits_BK.gather(1, (torch.arange(8) % 3)[:, None]).squeeze(1)
    wanted_B[7] = 0.25 * logits_BK[7, 0] + 0.75 * logits_BK[7, 2]
    torch.testing.assert_close(lesson.soft_B, (wanted_B / 2).sigmoid())
    assert torch.equal(lesson.components_BC, own.components_BC)
    assert all(map(torch.equal, lesson.tokens, own.tokens))
    assert torch.equal(teacher(batches[0]).soft_B, own.soft_B)


@torch.no_grad()
def test_lessons_from_kept_features_are_those_of_the_teacher_itself() -> None:
    batches = _batches(3)
    network = pocket_vit()
    raw_NF = torch.cat([network.raw_features(batch_BCHW)[0] for batch_BCHW in batches]).numpy()
    teacher = Teacher(network, PreprocessSpec(SIZE), DistilConfig(components=8))
    kept = Features(raw_NF.astype(np.float16)[::-1], np.arange(len(raw_NF))[::-1])  # rows in another order
    lessons = Lessons(teacher, kept)
    whole_23, plain_2 = torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.tensor([False] * 2)
    found = lessons.of(torch.tensor([17, 3]), whole_23, plain_2)
    assert found.tokens == ()
    asked = teacher(torch.stack([batches[2][1], batches[0][3]]))
    torch.testing.assert_close(found.soft_B, asked.soft_B, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.components_BC, asked.components_BC, atol=5e-3, rtol=0)
    again = Teacher(network, PreprocessSpec(SIZE), DistilConfig(components=8))
    Lessons(again, kept)
    assert torch.equal(again.basis_FC, teacher.basis_FC), "a student that is resumed finds the components it had"


@pytest.mark.parametrize("arch", ["levit_128s", "levit_conv_128s"])
def test_a_student_learns_all_of_a_lesson(arch: str) -> None:
    batches = _batches(2)
    teacher = _teacher(8, batches)
    torch.manual_seed(0)
    learner = Learner(network_from_arch(arch, 64), ALL, teacher.token_width).train()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    batch_BCHW = torch.nn.functional.interpolate(batches[0], (64, 64), mode="bilinear")
    lesson = teacher(batches[0])
    losses: list[list[float]] = []
    for _ in range(25):
        output, components_BC, tokens = learner(batch_BCHW)
        logits_B = logits_from_output(output)
        parts = [
            distillation_loss(logits_B, components_BC, tokens, lesson, part)
            for part in (DistilConfig(logits=1.0), DistilConfig(features=1.0), DistilConfig(tokens=1.0))
        ]
        losses.append([float(part.detach()) for part in parts])
        optimizer.zero_grad()
        torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for before, after in list(zip(*(losses[0], losses[-1]), strict=True))[1:]:
        assert after < 0.8 * before
    assert losses[-1][0] <= losses[0][0]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
