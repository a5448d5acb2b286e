"""Names of foreign networks are checked by name alone."""

import pytest

from tokenizers_mm.weights.network_names import check_extractor, check_perceptual, check_tower, is_tower

TOWERS = ["lite0", "timm:vit_small", "open_clip:ViT-B-32/openai"]
CHECKS = {
    check_tower: TOWERS,
    check_perceptual: ["lpips-vgg", "lpips-alex", "lpips-squeeze", "lite0", "timm:vit_small"],
    check_extractor: ["inception", "inception-pytorch", *TOWERS],
}
EVERY = {name for names in CHECKS.values() for name in names}
WRONG = ["", "lpips", "lpips-", "lpips-vgg19", "lite0:b0", "timm", "timm:", "open_clip:", "vgg", "Inception"]


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_takes_its_names_and_no_others(check):
    for name in CHECKS[check]:
        check(name)
    for name in [*WRONG, *EVERY - {*CHECKS[check]}]:
        with pytest.raises(ValueError, match=rf"^name={name!r}: expected .*lite0"):
            check(name)


def test_is_tower():
    assert all(map(is_tower, TOWERS))
    assert not any(map(is_tower, WRONG))
