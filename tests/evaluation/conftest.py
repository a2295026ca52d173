import pytest
from detectron2.config import get_cfg

from densesiam_d2.config import add_densesiam_config


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.MODEL.MASK_ON = True
    return cfg
